"""Drawing many images through one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigr_jax.api import Array, Given
from bigr_jax.gather import on_host


def drawing(sample: Callable[..., Array]) -> Any:
    """Returns `sample`, jitted: on a mesh every device draws its own rows."""

    def spread(variables: Any, key: Array, labels: Array, given: Given) -> Array:
        return sample(variables, key, nn.with_logical_constraint(labels, ("batch",)), given)

    return jax.jit(spread)


def sample_in_batches(
    sample: Callable[..., Array],
    variables: Any,
    key: Array,
    labels: np.ndarray,
    given: Given,
    size: int,
) -> np.ndarray:
    """Returns images for all labels, `size` at a time, the last batch padded so that one program
    serves all.

    sample  (variables, key, labels [size], given) -> images [size, H, W, C]
    Returns float32 [len(labels), H, W, C]. Batch i draws with `fold_in(key, i)`.
    """
    run = drawing(sample)
    parts = []
    for index, start in enumerate(range(0, len(labels), size)):
        rows = np.asarray(labels[start : start + size], np.int32)
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        drawn = run(variables, jax.random.fold_in(key, index), padded, given)
        parts.append(on_host(drawn)[: len(rows)])
    return np.concatenate(parts)
