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

    x: [batch, length, *features] -> as x, in its type. Raises ValueError for an even number of
    taps, which has no centre.

    Attributes:
      size: number of taps, odd unless `causal`.
      names: logical names of the features.
      causal: the last tap stands on the token, so that it sees none that comes after it.
    """

    size: int
    names: tuple[str | None, ...]
    causal: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.size % 2 == 0 and not self.causal:
            raise ValueError(
                f"size is {self.size}; a centred convolution has an odd number of taps"
            )
        init, features = _uniform(1 / math.sqrt(self.size)), x.shape[2:]
        kernel = self.param("kernel", named(init, None, *self.names), (self.size, *features))
        bias = self.param("bias", named(init, *self.names), features)
        after = 0 if self.causal else self.size // 2
        rest = ((0, 0),) * len(features)

        # Kept for the backward pass is x, not its shifted copies.
        @jax.checkpoint
        def convolved(x: Array, kernel: Array, bias: Array) -> Array:
            wide = jnp.pad(x, ((0, 0), (self.size - 1 - after, after), *rest))
            # Shifted products: on a processor the depthwise convolutions of XLA are slower.
            taps = (wide[:, k : k + x.shape[1]] * kernel[k] for k in range(self.size))
            return sum(taps, bias)

        return convolved(x, kernel.astype(x.dtype), bias.astype(x.dtype))


def _uniform(bound: float) -> Any:
    """PyTorch's own initialisation of a depthwise convolution and of its bias."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
