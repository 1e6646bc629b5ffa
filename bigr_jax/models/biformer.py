"""BiFormer: a pyramid of maps whose tokens attend to the regions that they are routed to.

Source: arXiv 2303.08810, section 3.3 and table 1; details as published in
github.com/rayleizhu/BiFormer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.errors import UserError, one_of
from bigr_jax.nn.conv import DepthwiseConv, batch_norm, conv
from bigr_jax.nn.drop_path import DropPath, rates
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.map_attention import make
from bigr_jax.nn.mlp import GeluMLP
from bigr_jax.nn.norms import LayerNorm
from bigr_jax.nn.stack import scan_layers

Array = jax.Array

# Of ImageNet: what published weights expect the pixels to be normalised by.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPSILON = 1e-6
_MAP = ("batch", "height", "width", "channels")


class Block(nn.Module):
    """Three residual branches: a depthwise 3x3 convolution (the positions), attention, MLP.

    Attributes:
      attention: kind, see `nn.map_attention`; options: what `make` takes beside it.
      ratio: hidden features of the MLP, in units of the channels.
      positions: the first branch is there.
      dtype: of the matrix products and convolutions; the residual stream is float32.
    """

    attention: str
    options: Mapping[str, Any]
    ratio: int
    positions: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Array, deterministic: bool = True, drop_path: float | Array = 0.0
    ) -> Array:
        """Returns the next map, float32, as x: [batch, height, width, channels]."""
        width, drop = x.shape[-1], DropPath()
        if self.positions:
            x = x + DepthwiseConv(3, self.dtype, name="positions")(x)
        attention = make(self.attention, dtype=self.dtype, name="attention", **self.options)
        y = attention(LayerNorm(_EPSILON, name="attention_norm")(x))
        x = x + drop(y, drop_path, deterministic)
        mlp = GeluMLP(self.ratio * width, dtype=self.dtype, name="mlp")
        x = x + drop(mlp(LayerNorm(_EPSILON, name="mlp_norm")(x)), drop_path, deterministic)
        return nn.with_logical_constraint(x, _MAP)


class Stages(nn.Module):
    """Stages of blocks, between which the map is halved: what both networks have in common.

    Attributes:
      depths, widths, heads: blocks, channels and heads of each stage.
      topk: regions that a region attends to, of each stage; 0: this stage has dense attention.
      regions: of the map along either side, in every stage.
      ratio: hidden features of the MLP, in units of the channels.
      drop_path: rate of stochastic depth in the last block, growing from 0 in the first.
      attention: kind that the stages with topk have, see `nn.map_attention`.
      pooling: side of a patch, where the kind is "pooled".
      form: of the routed attention, see `ops.routing`.
      patches: the map begins, and is halved, with convolutions of patches that do not overlap,
        behind norms, as in Swin, and blocks have no positions; then dense stages differ too.
      stem: the image is halved twice or, at 2, once.
      remat: see `nn.stack`.
      mean, std: what pixels in [0, 1] are normalised by; of grey images their own mean.
      dtype: of the matrix products and convolutions.

    Variables are in "params", running statistics of the norms in "batch_stats".
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    topk: tuple[int, ...] = (1, 4, 16, 0)
    regions: int = 7
    ratio: int = 3
    drop_path: float = 0.0
    attention: str = "routed"
    pooling: int = 2
    form: str = "auto"
    patches: bool = False
    stem: int = 4
    remat: str = "none"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    dtype: DTypeLike = jnp.float32

    def stages(self, images: Array, deterministic: bool) -> list[Array]:
        """Returns the maps behind the stages, finest first, float32 [batch, height, width,
        channels].

        images: float [batch, height, width, 1 or 3] in [0, 1], sides of any length. Without
        `deterministic` the norms use the batch's statistics (over all devices), and blocks drop out
        by the rng "dropout". Raises UserError where the stages are not told all alike.
        """
        count = len(self.depths)
        if not len(self.widths) == len(self.heads) == len(self.topk) == count:
            told = f"widths={self.widths}, heads={self.heads}, topk={self.topk}"
            raise UserError(f"{told} are not of {count} stages, depths={self.depths}")
        x, found, done = self._normalised(images), [], 0
        for stage, depth in enumerate(self.depths):
            x = self._smaller(x, stage, deterministic)
            block = Block(
                *self.kind(stage),
                self.ratio,
                not self.patches,
                self.dtype,
                name=f"stage_{stage}",
            )
            own = rates(self.drop_path, depth, done, sum(self.depths)) if self.drop_path else None
            x, _ = scan_layers(
                block, depth, x, remat=self.remat, deterministic=deterministic, drop_path=own
            )
            done += depth
            found.append(x)
        return found

    def _normalised(self, images: Array) -> Array:
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.mean, self.std))
        if images.shape[-1] == 1:
            mean, std = mean.mean(), std.mean()
        return (images.astype(jnp.float32) - mean) / std

    def _smaller(self, x: Array, stage: int, deterministic: bool) -> Array:
        """Returns the map that a stage begins with."""
        width, dtype = self.widths[stage], self.dtype

        def norm(x: Array, name: str) -> Array:
            return batch_norm(deterministic, jnp.float32, name)(x)

        if self.patches:
            if stage:
                x = norm(x, f"norm_{stage}")
            side = 2 if stage else self.stem
            cut = conv(width, side, dtype, f"down_{stage}", strides=side, padding=0)
            x = cut(x.astype(dtype)).astype(jnp.float32)
            return x if stage else norm(x, "norm_0")
        if stage == 0 and self.stem == 4:
            x = conv(width // 2, 3, dtype, "stem", strides=2)(x.astype(dtype))
            x = nn.gelu(norm(x, "stem_norm"), approximate=False)
        x = conv(width, 3, dtype, f"down_{stage}", strides=2)(x.astype(dtype))
        return norm(x, f"norm_{stage}")

    def kind(self, stage: int) -> tuple[str, dict[str, Any]]:
        """Returns the kind of attention of a stage, and its options; see `nn.map_attention`."""
        if self.topk[stage]:
            own = {"topk": self.topk[stage], "ratio": self.pooling, "form": self.form}
            return self.attention, {"heads": self.heads[stage], "regions": self.regions, **own}
        # The published dense layers: their convolution sees the input, but for that of STL.
        options = {"heads": self.heads[stage], "bias": False, "by_width": False}
        return "dense", {**options, "of_input": not self.patches}


class BiFormer(Stages):
    """Classifies images.

    Attributes: beside those of `Stages`
      classes: number of classes.
    """

    classes: int = 1000

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> tuple[Array, Array]:
        """Returns logits, float32 [batch, classes], and features, float32 [batch, channels]; see
        `stages`.
        """
        last = batch_norm(deterministic, jnp.float32, "norm")(
            self.stages(images, deterministic)[-1]
        )
        features = last.mean(axis=(1, 2))
        return Linear((self.classes,), ("embed", None), True, name="head")(features), features


class Pyramid(Stages):
    """Gives the maps of all stages, each behind a norm of its own, for dense prediction."""

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> list[Array]:
        """Returns what `stages` does; the norms are not in the way of the next stage."""
        found = self.stages(images, deterministic)
        return [LayerNorm(_EPSILON, name=f"map_norm_{i}")(x) for i, x in enumerate(found)]


def _size(depths: tuple[int, ...], width: int, **changes: Any) -> dict[str, Any]:
    widths = tuple(width * 2**stage for stage in range(4))
    # A head has 32 channels, but in the dense stage there are always 8.
    heads = (*(width // 32 * 2**stage for stage in range(3)), 8)
    return {"depths": depths, "widths": widths, "heads": heads, **changes}


# As published for images of 224 pixels; STL is Swin-T with the attention alone replaced.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "T": _size((2, 2, 8, 2), 64, drop_path=0.1),
    "S": _size((4, 4, 18, 4), 64, drop_path=0.15),
    "B": _size((4, 4, 18, 4), 96, drop_path=0.4),
    "STL": _size((2, 2, 6, 2), 96, ratio=4, patches=True, drop_path=0.2),
}


def named(name: str, **overrides: Any) -> BiFormer:
    """Returns the model of a published size, with the fields that are given changed.

    Raises UserError for an unknown size or field.
    """
    if name not in SIZES:
        raise one_of("size", name, SIZES)
    fields = [f.name for f in dataclasses.fields(BiFormer) if f.name not in ("parent", "name")]
    for field in overrides:
        if field not in fields:
            raise one_of("field of BiFormer", field, fields)
    return BiFormer(**{**SIZES[name], **overrides})
