"""Semantic segmentation by a feature pyramid, and of maps of features as they are.

Source: the head of panoptic feature pyramid networks (arXiv 1901.02446), section 3.1, as BiFormer
is measured with on ADE20K.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.models.biformer import Block, Pyramid
from bigr_jax.nn.conv import batch_norm, conv
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.norms import LayerNorm
from bigr_jax.nn.stack import scan_layers

Array = jax.Array


class SemanticFPN(nn.Module):
    """Names the class of every pixel.

    Attributes:
      classes: number of classes, the background among them.
      backbone: gives the maps of several resolutions, finest first, each half of the one before.
      width: channels of the pyramid.
      head_width: channels of the head.
      dropout: rate of whole channels before the last layer.
      dtype: of the convolutions.
    """

    classes: int
    backbone: Pyramid
    width: int = 256
    head_width: int = 128
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> Array:
        """Returns logits, float32 [batch, height, width, classes].

        images: float [batch, height, width, 1 or 3] in [0, 1]. Without `deterministic` norms use
        the batch's statistics and channels drop out by the rng "dropout".
        """
        maps = self.backbone(images, deterministic)
        x = self._merged(maps, deterministic)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=deterministic)
        logits = conv(self.classes, 1, self.dtype, "logits")(x).astype(jnp.float32)
        return resized(logits, images.shape[1:3])

    def _merged(self, maps: list[Array], deterministic: bool) -> Array:
        """Returns the sum of all levels at the finest resolution, [batch, height, width,
        head_width].
        """
        total: Any = 0.0
        above: Array | None = None
        for level in reversed(range(len(maps))):
            x = conv(self.width, 1, self.dtype, f"lateral_{level}")(maps[level].astype(self.dtype))
            if above is not None:
                x = x + resized(above, x.shape[1:3], "nearest")
            above = x
            x = conv(self.width, 3, self.dtype, f"smooth_{level}")(x)
            for step in range(max(level, 1)):
                x = conv(self.head_width, 3, self.dtype, f"head_{level}_{step}")(x)
                norm = batch_norm(deterministic, jnp.float32, f"head_norm_{level}_{step}")
                x = nn.relu(norm(x)).astype(self.dtype)
                if level:
                    x = resized(x, maps[level - 1 - step].shape[1:3])
            total = total + x
        return total


class MapTagger(nn.Module):
    """Names the class of every place of a map of features, by blocks without a beginning.

    Attributes:
      classes: number of classes.
      depth: number of blocks.
      block: one of them; see `models.biformer.Block`.
    """

    classes: int
    depth: int
    block: Block

    @nn.compact
    def __call__(self, features: Array, deterministic: bool = True) -> Array:
        """Returns logits, float32 [batch, height, width, classes]; features: float [batch, height,
        width, channels].
        """
        x, _ = scan_layers(
            self.block, self.depth, features.astype(jnp.float32), deterministic=deterministic
        )
        head = Linear((self.classes,), ("embed", None), True, name="head")
        return head(LayerNorm(name="norm")(x))


def resized(x: Array, size: tuple[int, ...], method: str = "bilinear") -> Array:
    """Returns maps [batch, height, width, channels] of another size (height, width)."""
    return x if x.shape[1:3] == size else jax.image.resize(x, (len(x), *size, x.shape[-1]), method)
