"""The PatchGAN discriminator: one logit of being real per overlapping patch.

Source: pix2pix (arXiv 1611.07004), as trained with VQGAN-style autoencoders (arXiv 2012.09841).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.errors import UserError
from bigr_jax.nn.conv import batch_norm, conv

Array = jax.Array


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions with BatchNorm and leaky ReLU (slope 0.2).

    filters channels after the first layer, doubled per layer up to eight times; `layers` of them
    halve height and width. Running statistics live in the collection "batch_stats".
    """

    filters: int = 64
    layers: int = 3
    channels: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = True) -> Array:
        """image: [batch, height, width, channels] -> float32 logits [batch, h, w, 1].

        h = height / 2^layers - 2. With `train` the statistics are the batch's (over all devices),
        else the running ones. Raises UserError for images too small for the layers, ValueError for
        other channels.
        """
        _, height, width, channels = image.shape
        if channels != self.channels:
            raise ValueError(f"image {image.shape} must have {self.channels} channels")
        if min(height, width) < 3 * 2**self.layers:
            raise UserError(
                f"layers={self.layers} of the discriminator need images of at least "
                f"{3 * 2**self.layers} pixels; given {height} x {width}"
            )
        x = nn.leaky_relu(self._conv(self.filters, 2, "conv_0")(image.astype(self.dtype)), 0.2)
        for layer in range(1, self.layers + 1):
            features = self.filters * min(2**layer, 8)
            strides = 2 if layer < self.layers else 1
            x = self._conv(features, strides, f"conv_{layer}", use_bias=False)(x)
            x = nn.leaky_relu(self._norm(not train, f"norm_{layer}")(x), 0.2)
        return self._conv(1, 1, "conv_out")(x).astype(jnp.float32)

    def _conv(self, features: int, strides: int, name: str, use_bias: bool = True) -> nn.Conv:
        return conv(
            features,
            4,
            self.dtype,
            name,
            strides=strides,
            padding=1,
            use_bias=use_bias,
            kernel_init=nn.initializers.normal(0.02),
        )

    def _norm(self, use_running_average: bool, name: str) -> nn.BatchNorm:
        def scale(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)

        return batch_norm(use_running_average, self.dtype, name, scale)
