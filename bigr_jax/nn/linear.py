"""A linear map between groups of axes."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.partition import named

Array = jax.Array

# Uniform within 1 / sqrt(inputs), as PyTorch has it; of 768 inputs nearly as wide as N(0, 0.02).
FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Linear(nn.Module):
    """Contracts the trailing axes of its input with a kernel [*inputs, *features].

    `nn.DenseGeneral` makes its kernel with two axes and reshapes it, which contradicts names for
    more axes when parameters are born under a mesh; this one does not.

    x: [..., *inputs] -> `dtype` [..., *features]

    Attributes:
      features: the new trailing axes.
      names: logical names of the kernel's axes, inputs first; their number tells how many axes of
        the input are contracted.
      bias: adds a parameter of the shape `features`, initially zero.
      kernel_init: initializer of the kernel; it sees two axes, all inputs and all features.
      dtype: of the product; parameters are float32. Sums of integers are int32.
    """

    features: tuple[int, ...]
    names: tuple[str | None, ...]
    bias: bool = False
    kernel_init: Any = nn.initializers.normal(0.02)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        count, outputs = len(self.names) - len(self.features), tuple(self.features)
        inputs = x.shape[-count:]

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            return self.kernel_init(key, (math.prod(inputs), math.prod(outputs))).reshape(shape)

        kernel = self.param("kernel", named(init, *self.names), (*inputs, *outputs))
        axes = (tuple(range(x.ndim - count, x.ndim)), tuple(range(count)))
        sums = jnp.int32 if jnp.issubdtype(self.dtype, jnp.integer) else None
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jax.lax.dot_general(x, kernel, (axes, ((), ())), preferred_element_type=sums)
        if self.bias:
            zeros = named(nn.initializers.zeros, *self.names[count:])
            y = y + self.param("bias", zeros, outputs).astype(self.dtype)
        return y
