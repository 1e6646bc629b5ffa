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
