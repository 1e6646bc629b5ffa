"""Classifier-free guidance: a conditional and a null prediction from one doubled batch.

The two rows of an example lie next to each other (conditional, null, conditional, null, ...), so
that a batch that is split over devices stays in place when it is doubled and when it is combined.
Source: Ho and Salimans (arXiv 2207.12598).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def pair(conditional: Array, null: Array) -> Array:
    """Returns the doubled batch [2 * batch, ...] of two arrays that broadcast to [batch, ...]."""
    conditional, null = jnp.broadcast_arrays(conditional, null)
    return jnp.stack([conditional, null], axis=1).reshape(-1, *conditional.shape[1:])


def twice(x: Array) -> Array:
    """Returns [batch, ...] as the doubled batch [2 * batch, ...] whose pairs are equal."""
    return jnp.repeat(x, 2, axis=0)


def combine(doubled: Array, scale: Array | float) -> Array:
    """Returns null + scale * (conditional - null), [batch, ...], from the doubled [2 * batch, ...].

    Any scale is legal: 0 gives exactly the null prediction, 1 exactly the conditional one.
    """
    pairs = doubled.reshape(-1, 2, *doubled.shape[1:])
    conditional, null = pairs[:, 0], pairs[:, 1]
    return scale * conditional + (1.0 - scale) * null
