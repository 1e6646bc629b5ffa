"""Convolutional blocks of VQGAN-style image autoencoders, channels last.

Source: taming transformers (arXiv 2012.09841) as used by Binary Latent Diffusion (2304.04820).
Every block maps [batch, height, width, channels] to the same rank.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.partition import named
from bigr_jax.ops.depthwise import depthwise_conv

Array = jax.Array

# Uniform in +-1/sqrt(fan in), the initialisation that the published autoencoders started from.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
    features: int,
    size: int,
    dtype: DTypeLike,
    name: str,
    *,
    strides: int = 1,
    padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None,
    use_bias: bool = True,
    kernel_init: nn.initializers.Initializer = _KERNEL_INIT,
) -> nn.Conv:
    """Returns a `size` x `size` convolution; the padding is size // 2 on every side unless given.

    Its kernel is [size, size, in, out] with the logical axes ("conv_in", "conv_out").
    """
    return nn.Conv(
        features,
        (size, size),
        strides=strides,
        padding=size // 2 if padding is None else padding,
        use_bias=use_bias,
        dtype=dtype,
        name=name,
        kernel_init=nn.with_logical_partitioning(kernel_init, (None, None, "conv_in", "conv_out")),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
    )


class DepthwiseConv(nn.Module):
    """Every channel of a map convolved with its own kernel, which keeps the map's size.

    x: [batch, height, width, channels] -> `dtype`, the same shape.

    Attributes:
      size: side of the kernel, odd.
      dtype: of the products.
    """

    size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        names, channels = (None, None, None, "conv_out"), x.shape[-1]
        kernel = self.param(
            "kernel",
            named(_KERNEL_INIT, *names),
            (self.size, self.size, 1, channels),
        )
        zeros = named(nn.initializers.zeros, "conv_out")
        bias = self.param("bias", zeros, (channels,))
        # A kernel that lies in parts is gathered: it is small, and otherwise the map is sent around
        # to have its channels in parts too.
        kernel = nn.with_logical_constraint(kernel, (None, None, None, "channels"))
        bias = nn.with_logical_constraint(bias, ("channels",))
        y = depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype)


def group_norm(channels: int, groups: int, dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """Returns a GroupNorm (eps 1e-6, affine, statistics in float32) over `groups` groups.

    Published networks have 32 groups. Where `groups` does not divide the channels of a narrow
    network, their greatest common divisor is taken: 16 groups for 16 or for 48 channels.
    """
    return nn.GroupNorm(
        math.gcd(groups, channels),
        epsilon=1e-6,
        dtype=dtype,
        name=name,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
    )


def batch_norm(
    use_running_average: bool,
    dtype: DTypeLike,
    name: str,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> nn.BatchNorm:
    """Returns a BatchNorm (eps 1e-5, statistics in float32 over all devices) as PyTorch has it.

    Running statistics, a tenth of each batch's, live in the collection "batch_stats".
    """
    return nn.BatchNorm(
        use_running_average,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        name=name,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(scale_init, ("conv_out",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
    )


class ResBlock(nn.Module):
    """Two times norm, swish, 3x3 convolution, beside a skip that is 1x1 where the width changes."""

    features: int
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [batch, height, width, channels] -> [batch, height, width, features]."""
        h = nn.swish(group_norm(x.shape[-1], self.groups, self.dtype, "norm1")(x))
        h = conv(self.features, 3, self.dtype, "conv1")(h)
        h = nn.swish(group_norm(self.features, self.groups, self.dtype, "norm2")(h))
        h = conv(self.features, 3, self.dtype, "conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, "conv_out")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head attention over all positions, with a norm before and a residual beside it."""

    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [batch, height, width, channels] -> the same shape; softmax in float32."""
        batch, height, width, channels = x.shape
        h = group_norm(channels, self.groups, self.dtype, "norm")(x)
        h = h.reshape(batch, height * width, channels)
        query, key, value = (self._linear(channels, name)(h) for name in ("q", "k", "v"))
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * channels**-0.5, axis=-1).astype(value.dtype)
        h = self._linear(channels, "proj_out")(jnp.einsum("bqk,bkc->bqc", weights, value))
        return x + h.reshape(x.shape)

    def _linear(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(
            features,
            dtype=self.dtype,
            name=name,
            kernel_init=nn.with_logical_partitioning(_KERNEL_INIT, ("conv_in", "conv_out")),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        )


class Downsample(nn.Module):
    """Halves height and width: one row of zeros below and one column right, 3x3 with stride 2."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [batch, 2 h, 2 w, channels] -> [batch, h, w, channels]."""
        return conv(x.shape[-1], 3, self.dtype, "conv", strides=2, padding=((0, 1), (0, 1)))(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then smooths with a 3x3 convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [batch, h, w, channels] -> [batch, 2 h, 2 w, channels]."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(
            x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
        ).reshape(batch, 2 * height, 2 * width, channels)
        return conv(channels, 3, self.dtype, "conv")(x)
