"""A small convolutional classifier: the referee that reads drawn images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class ConvNet(nn.Module):
    """Convolutional classifier of small images, with GroupNorm so that no batch statistics are
    kept.

    __call__  images float [B, H, W, C] in [0, 1] -> (logits float32 [B, classes], features float32
              [B, D]); the same whether `deterministic` or not
    widths    channels of the levels; each level halves height and width
    """

    classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> tuple[Array, Array]:
        # images: [batch, height, width, channels]
        x = images.astype(self.dtype) * 2 - 1
        for width in self.widths:
            kernel = nn.with_logical_partitioning(
                nn.initializers.he_normal(), (None, None, "conv_in", "conv_out")
            )
            x = nn.Conv(width, (3, 3), use_bias=False, kernel_init=kernel, dtype=self.dtype)(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, dtype=jnp.float32)(x)).astype(self.dtype)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        features = x.reshape(x.shape[0], -1).astype(jnp.float32)
        hidden = nn.Dense(self.widths[-1], dtype=self.dtype, name="features")(features)
        features = nn.relu(hidden).astype(jnp.float32)
        return nn.Dense(self.classes, name="logits")(features), features
