"""Drawing many images through one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from bigr_jax.api import Array, Given
from bigr_jax.gather import on_host


def drawing(sample: Callable[..., Array]) -> Any:
    """Returns `sample`, jitted for the mesh that is set: every device draws its own rows.

    Asked for again, it returns the same, so that drawing once more compiles nothing.
    """
    return _drawing(sample, jax.sharding.get_abstract_mesh(), tuple(nn.get_logical_axis_rules()))


@functools.lru_cache(maxsize=8)
def _drawing(sample: Callable[..., Array], mesh: AbstractMesh, rules: tuple[Any, ...]) -> Any:
    def spread(variables: Any, key: Array, labels: Array, given: Given) -> Array:
        return sample(variables, key, nn.with_logical_constraint(labels, ("batch",)), given)

    if mesh.empty:
        return jax.jit(spread)
    # Left to itself the compiler may choose a placement of the labels that JAX has no name for.
    return jax.jit(spread, in_shardings=(None, None, PartitionSpec(), None))


def rounded(size: int, mesh: Mesh | AbstractMesh) -> int:
    """Returns the least number of rows, from `size` on, that divides over the devices of a mesh."""
    shape = dict(mesh.shape)
    devices = shape.get("data", 1) * shape.get("fsdp", 1)
    return -(-size // devices) * devices


def sample_in_batches(
    sample: Callable[..., Array],
    variables: Any,
    key: Array,
    labels: np.ndarray,
    given: Given,
    size: int,
) -> np.ndarray:
    """Returns images for all labels, about `size` at a time, the last batch padded so that one
    program serves all.

    sample  (variables, key, labels [B], given) -> images [B, H, W, C]
    size    B, but for what the devices of the mesh that is set need to have equally many, see
            `rounded`
    Returns float32 [len(labels), H, W, C]. Batch i draws with `fold_in(key, i)`.
    """
    run, parts = drawing(sample), []
    size = rounded(size, jax.sharding.get_abstract_mesh())
    for index, start in enumerate(range(0, len(labels), size)):
        rows = np.asarray(labels[start : start + size], np.int32)
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        drawn = run(variables, jax.random.fold_in(key, index), padded, given)
        parts.append(on_host(drawn)[: len(rows)])
    return np.concatenate(parts)
