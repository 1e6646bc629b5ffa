"""Logical names on parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn


def named(init: Callable[..., Any], *names: str | None) -> Callable[..., Any]:
    """Returns the initializer, with a logical name for each axis of what it makes.

    None stands for an axis that is never split. `train.sharding` maps names to mesh axes.
    """
    return nn.with_logical_partitioning(init, names)
