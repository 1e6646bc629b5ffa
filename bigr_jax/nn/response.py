"""Linear maps whose weights answer to hyper-parameters: the affine form of the best response.

Source: MacKay et al., Self-Tuning Networks, arXiv 1903.03088, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.linear import FAN_IN
from bigr_jax.nn.partition import named

Array = jax.Array

_GATES = nn.initializers.normal(0.01)


class _Response(nn.Module):
    """y = scale (W x + b) + (V_w h) * (W_h x) + (V_b h) * b_h, of whatever product W x is.

    Attributes:
      features: outputs.
      tuned: numbers in h, the hyper-parameters in unconstrained form; 0 is the plain map W x + b.
      dtype: of the products; parameters are float32.
    """

    features: int
    tuned: int = 0
    dtype: DTypeLike = jnp.float32

    def _responding(
        self,
        x: Array,
        h: Array | None,
        shape: tuple[int, ...],
        names: tuple[str | None, ...],
        product: Callable[[Array, Array], Array],
    ) -> Array:
        plain, bias = self._pair("", shape, names)
        x = x.astype(self.dtype)
        y = product(x, plain.astype(self.dtype)) + bias.astype(self.dtype)
        if not self.tuned:
            return y
        if h is None or h.shape != (x.shape[0], self.tuned):
            given = None if h is None else h.shape
            raise ValueError(f"h is {given}, expected a row for each of {x.shape[0]} examples")
        answer, offset = self._pair("response_", shape, names)
        scale = self.param("scale", nn.initializers.ones, ())
        init = named(_GATES, None, None, names[-1])
        gates = self.param("gates", init, (self.tuned, 2, self.features))
        opened = jnp.einsum("bn,nko->kbo", h, gates).astype(self.dtype)
        # Every example has gates of its own, the same at all its places.
        of_weights, of_bias = (gate.reshape(y.shape[0], *[1] * (y.ndim - 2), -1) for gate in opened)
        answered = product(x, answer.astype(self.dtype))
        y = scale.astype(self.dtype) * y
        return y + of_weights * answered + of_bias * offset.astype(self.dtype)

    def _pair(
        self, prefix: str, shape: tuple[int, ...], names: tuple[str | None, ...]
    ) -> tuple[Array, Array]:
        reach = 1 / math.sqrt(math.prod(shape[:-1]))
        kernel = self.param(f"{prefix}kernel", named(FAN_IN, *names), shape)

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-reach, maxval=reach)

        return kernel, self.param(f"{prefix}bias", named(uniform, names[-1]), shape[-1:])


class HyperDense(_Response):
    """A linear map of the last axis that answers to hyper-parameters, see `_Response`.

    x: [batch, ..., inputs], h: [batch, tuned] or None where nothing is tuned -> `dtype` [batch,
    ..., features]. With h = 0, or gates of 0, it is the plain map times `scale`, initially 1.

    Attributes:
      names: logical names of the kernel's two axes.
    """

    names: tuple[str | None, str | None] = ("embed", "mlp")

    @nn.compact
    def __call__(self, x: Array, h: Array | None = None) -> Array:
        # x: [batch, ..., inputs]
        return self._responding(x, h, (x.shape[-1], self.features), self.names, jnp.matmul)


class HyperConv(_Response):
    """A convolution that answers to hyper-parameters by a gate for every channel and example.

    x: [batch, height, width, channels], h as in `HyperDense` -> `dtype` [batch, height', width',
    features]; the padding is size // 2 on every side unless given.

    Attributes:
      size: side of the kernel.
      strides: of the convolution along both axes.
      padding: rows and columns of zeros on every side; -1 is size // 2.
    """

    size: int = 3
    strides: int = 1
    padding: int = -1

    @nn.compact
    def __call__(self, x: Array, h: Array | None = None) -> Array:
        # x: [batch, height, width, channels]
        around = self.size // 2 if self.padding < 0 else self.padding

        def product(x: Array, kernel: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.strides, self.strides),
                [(around, around)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        shape = (self.size, self.size, x.shape[-1], self.features)
        names = (None, None, "conv_in", "conv_out")
        return self._responding(x, h, shape, names, product)
