"""Normalisation layers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.partition import named

Array = jax.Array


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last axis, in float32, and applies a learned scale.

    x: [..., width] -> `dtype` [..., width]. Source: Zhang and Sennrich (arXiv 1910.07467).

    Attributes:
      epsilon: added to the mean square.
      dtype: of the result.
    """

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", named(nn.initializers.ones, "embed"), (x.shape[-1],))
        x = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(power + self.epsilon) * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Brings the last axis to mean 0 and variance 1, in float32, then scales and shifts it.

    x: [..., width] -> float32 [..., width]. Source: Ba et al. (arXiv 1607.06450).

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", named(nn.initializers.ones, "embed"), (x.shape[-1],))
        bias = self.param("bias", named(nn.initializers.zeros, "embed"), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
