"""Binary codes drawn from probabilities, with a gradient that passes straight through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


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
    # The difference is exactly zero in the forward pass, so the codes stay exactly 0 or 1.
    return lax.stop_gradient(codes) + (probabilities - lax.stop_gradient(probabilities))


def bernoulli(key: Array, probabilities: Array) -> Array:
    """Returns codes in {0, 1} drawn with the given probabilities, straight-through as `binarize`.

    key: a typed key; probabilities: any shape -> the same shape and dtype.
    """
    shape = jnp.shape(probabilities)
    return binarize(probabilities, jax.random.uniform(key, shape, probabilities.dtype))
