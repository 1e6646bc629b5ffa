"""How far a reconstruction is from its image, per image, in float32."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigr_jax.errors import one_of

Array = jax.Array


def absolute_error(x: Array, y: Array) -> Array:
    """Returns the mean absolute difference: [batch, ...], [batch, ...] -> float32 [batch]."""
    return _mean(jnp.abs(_difference(x, y)))


def squared_error(x: Array, y: Array) -> Array:
    """Returns the mean squared difference: [batch, ...], [batch, ...] -> float32 [batch]."""
    return _mean(jnp.square(_difference(x, y)))


LOSSES = {"l1": absolute_error, "l2": squared_error}


def reconstruction(name: str) -> Callable[[Array, Array], Array]:
    """Returns the loss of the config value `name`: "l1" or "l2"; raises UserError for another."""
    if name not in LOSSES:
        raise one_of("reconstruction", name, LOSSES)
    return LOSSES[name]


def code_variance(probabilities: Array) -> Array:
    """Returns the mean of s (1 - s), s = sigmoid(p), over bit probabilities: a float32 scalar.

    The published term takes the sigmoid of what is a probability already; its published weight is
    zero. Source: Binary Latent Diffusion (arXiv 2304.04820), official code.
    """
    s = jax.nn.sigmoid(probabilities.astype(jnp.float32))
    return jnp.mean(s * (1.0 - s))


def _difference(x: Array, y: Array) -> Array:
    if x.shape != y.shape:
        raise ValueError(f"images differ in shape: {x.shape} and {y.shape}")
    return x.astype(jnp.float32) - y.astype(jnp.float32)


def _mean(values: Array) -> Array:
    return values.mean(axis=tuple(range(1, values.ndim)))
