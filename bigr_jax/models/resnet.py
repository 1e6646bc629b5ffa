"""Residual networks for images of about 32 x 32: ResNet and PreActResNet.

Sources: arXiv 1512.03385 and 1603.05027, with the stem and the four widths that CIFAR recipes gave
them: one 3x3 convolution without pooling, 64 to 512 channels, three halvings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.conv import batch_norm, conv
from bigr_jax.nn.linear import FAN_IN, Linear

Array = jax.Array

# The published sizes, and two for a CPU.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {"depths": (2, 2, 2, 2)},
    "resnet34": {"depths": (3, 4, 6, 3)},
    "preact_resnet18": {"depths": (2, 2, 2, 2), "preact": True},
    "resnet_tiny": {"depths": (1, 1), "widths": (8, 16)},
    "preact_resnet_tiny": {"depths": (1, 1), "widths": (8, 16), "preact": True},
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a skip, which is a 1x1 where stride or width change.

    x: [batch, height, width, channels] -> [batch, height / stride, width / stride, features]

    Attributes:
      features: channels of what it returns.
      stride: of the first convolution and the skip.
      preact: norm and ReLU stand before each convolution and a skip that is a convolution, nothing
        behind the sum; else the norms stand behind the convolutions, and a ReLU behind the sum.
      dtype: of the products.
    """

    features: int
    stride: int = 1
    preact: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        def norm(x: Array, name: str) -> Array:
            return batch_norm(deterministic, self.dtype, name)(x)

        def convolved(x: Array, size: int, stride: int, name: str) -> Array:
            layer = conv(self.features, size, self.dtype, name, strides=stride, use_bias=False)
            return layer(x)

        changed = self.stride != 1 or x.shape[-1] != self.features
        if self.preact:
            h = nn.relu(norm(x, "norm1"))
            x = convolved(h, 1, self.stride, "skip") if changed else x
            h = convolved(h, 3, self.stride, "conv1")
            return x + convolved(nn.relu(norm(h, "norm2")), 3, 1, "conv2")
        h = nn.relu(norm(convolved(x, 3, self.stride, "conv1"), "norm1"))
        h = norm(convolved(h, 3, 1, "conv2"), "norm2")
        x = norm(convolved(x, 1, self.stride, "skip"), "skip_norm") if changed else x
        return nn.relu(x + h)


class ResNet(nn.Module):
    """Residual blocks in stages, of which every one but the first halves height and width.

    __call__  images float [B, H, W, C] in [0, 1] -> (logits float32 [B, classes], features float32
              [B, widths[-1]], the mean over the last map). Unless `deterministic` the norms take
              the statistics of the batch, over all devices, and replace a tenth of the running ones
              in "batch_stats", which must be mutable.

    Attributes:
      classes: number of classes.
      depths: blocks of each stage.
      widths: channels of each stage; as many as `depths`.
      preact: see `BasicBlock`; there is then a norm and a ReLU behind the last block, and none
        behind the stem.
      mean, std: of the channels of the data, taken from and divided out of the images.
      dtype: of the products.

    Raises ValueError where widths and depths are not equally many.
    """

    classes: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    preact: bool = False
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> tuple[Array, Array]:
        # images: [batch, height, width, channels]
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths {self.depths} and widths {self.widths} are not equally many")
        x = ((images - jnp.asarray(self.mean)) / jnp.asarray(self.std)).astype(self.dtype)
        x = conv(self.widths[0], 3, self.dtype, "stem", use_bias=False)(x)
        if not self.preact:
            x = nn.relu(batch_norm(deterministic, self.dtype, "stem_norm")(x))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                stride, name = 2 if stage and not index else 1, f"stage_{stage}_{index}"
                x = BasicBlock(width, stride, self.preact, self.dtype, name=name)(x, deterministic)
        if self.preact:
            x = nn.relu(batch_norm(deterministic, self.dtype, "norm")(x))
        features = x.astype(jnp.float32).mean((1, 2))
        head = Linear((self.classes,), ("embed", "codes"), bias=True, kernel_init=FAN_IN,
                      dtype=self.dtype, name="logits")  # fmt: skip
        return head(features).astype(jnp.float32), features
