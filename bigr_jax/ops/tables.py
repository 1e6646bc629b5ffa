"""Tables with a row for every training example, read and written by the index of the example."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

# Meshes of up to so many parts hold a table in equal parts; its shape must not depend on the mesh,
# or a checkpoint would fit no other.
PARTS = 256


def table_rows(examples: int) -> int:
    """Returns the rows of a table for so many examples: the next multiple of `PARTS`.

    Raises ValueError where there is no example.
    """
    if examples < 1:
        raise ValueError(f"examples is {examples}, expected at least 1")
    return -(-examples // PARTS) * PARTS


def mean_of_same(index: Array, values: Array) -> Array:
    """Returns in every row the mean of the rows that have its index: the row itself, bit by bit,
    where no other has.

    An example may stand in a batch twice, at the end of one epoch and the start of the next, or
    where every one is repeated; what is written to its row then must not depend on the order.
    index: int [B]; values: float32 [B, C] -> float32 [B, C]
    """
    same = (index[:, None] == index[None, :]).astype(values.dtype)
    # Less than full precision would round the rows that stand alone.
    sums = jnp.dot(same, values, precision=jax.lax.Precision.HIGHEST)
    return sums / same.sum(1, keepdims=True)
