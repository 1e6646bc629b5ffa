"""Arrays that lie on several devices, and hosts, as NumPy arrays."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def on_host(tree: Any) -> Any:
    """Returns the arrays of a tree, wherever they lie, as whole NumPy arrays on every host.

    All hosts call it with the same global arrays; an array of one host alone is returned there.
    """
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
