"""Gradients that pass straight through rounding, and binary codes drawn from probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def straight_through(value: Array, target: Array, strength: float | Array = 1.0) -> Array:
    """Returns exactly `target`, whose gradient is taken as if it were `value`.

    value, target: float, of one shape and dtype
    strength  how far from `value`, 0, to `target`, 1; the gradient is the same whichever
    Source: straight-through estimator (Bengio et al., arXiv 1308.3432).
    """
    if not (isinstance(strength, float) and strength == 1.0):
        target = value + strength * (target - value)
    # The difference is exactly zero in the forward pass.
    return lax.stop_gradient(target) + (value - lax.stop_gradient(value))


def binarize(probabilities: Array, uniforms: Array | None = None) -> Array:
    """Returns the codes, whose gradient is taken as if they were the probabilities themselves.

    probabilities: float, any shape; uniforms: the same shape, drawn from [0, 1).
    Returns codes in {0, 1} of the same shape and dtype: `uniforms < probabilities`, or, without
    uniforms, the likelier value of each bit (a probability of one half gives 0).

    Source: straight-through estimator (Bengio et al., arXiv 1308.3432) as used for binary latents
    (arXiv 2304.04820, equation 3).
    """
    threshold = 0.5 if uniforms is None else uniforms
    codes = (probabilities > threshold).astype(probabilities.dtype)
    return straight_through(probabilities, codes)


def bernoulli(key: Array, probabilities: Array) -> Array:
    """Returns codes in {0, 1} drawn with the given probabilities, straight-through as `binarize`.

    key: a typed key; probabilities: any shape -> the same shape and dtype.
    """
    shape = jnp.shape(probabilities)
    return binarize(probabilities, jax.random.uniform(key, shape, probabilities.dtype))
