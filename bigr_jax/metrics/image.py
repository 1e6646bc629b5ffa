"""Fidelity of a reconstruction to its image."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def psnr(x: Array, y: Array, peak: float = 1.0) -> Array:
    """Returns the peak signal-to-noise ratio in decibels per image: 10 log10(peak^2 / mse).

    x, y: [batch, ...] in [0, peak] -> float32 [batch]; infinite where they are equal.
    """
    if x.shape != y.shape:
        raise ValueError(f"images differ in shape: {x.shape} and {y.shape}")
    squares = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
    mse = squares.mean(axis=tuple(range(1, x.ndim)))
    return 10.0 * jnp.log10(peak**2 / mse)
