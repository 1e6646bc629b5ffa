"""A short depthwise convolution along a sequence."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.nn.partition import named

Array = jax.Array


class ShortConv(nn.Module):
    """Every feature convolved with its own kernel, centred on the token; zeros beyond the ends.

    x: [batch, length, *features] -> as x, in its type.

    Attributes:
      size: odd number of taps.
      names: logical names of the features.
    """

    size: int
    names: tuple[str | None, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.size % 2 == 0:
            raise ValueError(
                f"size is {self.size}; a centred convolution has an odd number of taps"
            )
        init, features = _uniform(1 / math.sqrt(self.size)), x.shape[2:]
        kernel = self.param("kernel", named(init, None, *self.names), (self.size, *features))
        bias = self.param("bias", named(init, *self.names), features)
        side, rest = self.size // 2, ((0, 0),) * len(features)
        wide = jnp.pad(x, ((0, 0), (side, side), *rest))
        # A handful of shifted products: depthwise convolutions of XLA are slower on a processor.
        taps = (wide[:, k : k + x.shape[1]] * kernel[k].astype(x.dtype) for k in range(self.size))
        return sum(taps, bias.astype(x.dtype))


def _uniform(bound: float) -> Any:
    """PyTorch's own initialisation of a depthwise convolution and of its bias."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
