"""BiGR: a bidirectional transformer that predicts masked tokens of binary codes.

The transformer reads a class token, or the tokens of a text, and N tokens of K bits, some of them
masked, and gives a hidden vector per token, from which the denoiser of the transcoder tells the
bits. What it learns knows no size: `at_grid` applies it at another.
Source: BiGR (arXiv 2410.14672), section 3, and its official implementation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.errors import UserError, one_of
from bigr_jax.models.transcoder import Denoiser
from bigr_jax.nn.adaln import SharedModulation
from bigr_jax.nn.block import Block
from bigr_jax.nn.embed import ClassEmbed, Prefix, Text, TextEmbed
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.mixers import CAUSAL
from bigr_jax.nn.mlp import swiglu_hidden
from bigr_jax.nn.norms import RMSNorm
from bigr_jax.nn.partition import named as with_names
from bigr_jax.nn.stack import scan_layers
from bigr_jax.ops.rope import grid_table

Array = jax.Array

POSITIONS = ("interpolated", "extrapolated")


class BiGR(nn.Module):
    """The transformer and its denoiser. Below: B images, N = rows * cols tokens, D = width.

    A condition is what an image is asked to be: labels int [B], or with `text` a `Text`.

    Attributes:
      depth, width, heads: of the transformer.
      bits: K, bits per token.
      grid: (rows, cols) of tokens, in raster order.
      num_classes: number of classes, and the label of the null class.
      head_width, head_blocks: of the denoiser.
      dropout: rate after attention and after the feed-forward layer.
      adaln: the class also modulates every block (all published models).
      target: what the denoiser's logits tell, the flip of x_t or x_0 (`losses.bits.BitObjective`).
      mixer: name of the token mixer in `nn.mixers`; with a causal one the model is autoregressive.
      remat: how much of a block the backward pass computes again: "none", "dots" or "full".
      ffn_hidden: hidden features of the feed-forward layer; None: 8/3 of the width, rounded up.
      dtype: of the matrix products; parameters, residual stream, norms and results are float32.
      text: (tokens, features) of the texts that condition the model in place of classes; () is
        none. Their prefix has no place on the grid: its rotations are zeros like those of the class
        token, as in LlamaGen (arXiv 2406.06525), so that words are told apart by what they say.
      rope_grid: the grid over which the rotations spread (`ops.rope.grid_table`); None: `grid`.
      position_grid: the grid of the position embedding, which is scaled bicubically to `grid` (a
        smaller one sees it smoothed); None: `grid`.

    Raises UserError where the width does not suit the heads.
    """

    depth: int
    width: int
    heads: int
    bits: int
    grid: tuple[int, int]
    num_classes: int
    head_width: int
    head_blocks: int
    target: Literal["flip", "z0", "direct"] = "flip"
    dropout: float = 0.1
    adaln: bool = True
    mixer: str = "attention"
    remat: str = "none"
    ffn_hidden: int | None = None
    dtype: DTypeLike = jnp.float32
    text: tuple[int, ...] = ()
    rope_grid: tuple[int, int] | None = None
    position_grid: tuple[int, int] | None = None

    @property
    def length(self) -> int:
        """N, the number of tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix(self) -> int:
        """Tokens in front of those of the image: one for a class, or those of a text."""
        return self.text[0] if self.text else 1

    @property
    def causal(self) -> bool:
        """Whether a token is predicted from those before it, not from those that are not masked."""
        return self.mixer in CAUSAL

    def setup(self) -> None:
        width, dtype = self.width, self.dtype
        if width % (4 * self.heads):
            raise UserError(
                f"width={width} is not a multiple of 4 * heads = {4 * self.heads}, "
                "which rotations over rows and columns need"
            )
        normal = nn.initializers.normal
        if self.text:
            if len(self.text) != 2 or min(self.text) < 1:
                raise UserError(f"text={self.text} is not (tokens, features); legal: () for none")
            self.captions = TextEmbed(*self.text, width, dtype)
        else:
            self.classes = ClassEmbed(self.num_classes, width)
        self.embed = Linear((width,), ("codes", "embed"), bias=True, dtype=dtype)
        self.mask_token = self.param("mask_token", with_names(normal(1.0), "embed"), (width,))
        if self.adaln:
            self.modulation = SharedModulation(dtype)
        self.layers = Block(
            heads=self.heads,
            hidden=self.ffn_hidden or swiglu_hidden(width),
            mixer=self.mixer,
            grid=self.grid,
            adaln=self.adaln,
            dropout=self.dropout,
            dtype=dtype,
        )
        self.norm = RMSNorm()
        position = with_names(normal(0.02), "position", "embed")
        shape = (math.prod(self.position_grid or self.grid), width)
        self.position = self.param("position", position, shape)
        self.denoiser = Denoiser(self.bits, self.head_width, self.head_blocks, dtype)

    def __call__(
        self,
        bits: Array,
        labels: Array | Text,
        mask: Array,
        x_t: Array,
        t: Array,
        deterministic: bool = True,
    ) -> Array:
        """Returns the denoiser's logits, float32 [B, N, K], at every token.

        bits: {0, 1} [B, N, K], labels: a condition, mask: bool [B, N], True = masked (its bits are
        not read), x_t: {0, 1} [B, N, K], t: int [B, N] in 1..T. Dropout draws from the rng
        "dropout".
        """
        hidden = self.hidden(bits, self.condition(labels), mask, deterministic)
        return self.denoise(x_t, t, hidden)

    def condition(self, labels: Array | Text) -> Any:
        """Returns the embeddings, float32 [B, 1, D], of labels [B]; `num_classes` is no class.

        Of a `Text` it returns a `Prefix`. Raises ValueError for what the model is not conditioned
        on.
        """
        if isinstance(labels, Text) and self.text:
            return self.captions(labels)
        if isinstance(labels, Text) or self.text:
            wanted = "a Text" if self.text else "labels"
            raise ValueError(f"a model with text={self.text} is conditioned on {wanted}")
        return self.classes(labels)[:, None]

    def null(self, rows: int) -> Any:
        """Returns the condition that says nothing, for a batch of `rows`: of guidance, and of
        representations.
        """
        if not self.text:
            return jnp.full(rows, self.num_classes)
        shape = (rows, *self.text)
        return Text(jnp.zeros(shape), jnp.zeros(shape[:2], bool))

    def hidden(
        self, bits: Array, condition: Any, mask: Array | None, deterministic: bool = True
    ) -> Array:
        """Returns the vectors, float32 [B, N, D], on which the denoiser is conditioned.

        bits: {0, 1} [B, N, K], condition: from `condition`, float32 [B, 1, D] also a mixture of
        such, mask: bool [B, N], True = masked; None: nothing is masked. A causal model masks
        nothing: its vector of a token is the one that it has before it reads that token.
        """
        x, _ = self._residual(bits, condition, None if self.causal else mask, deterministic)
        first = self.prefix - self.causal
        return self.norm(x)[:, first : first + self.length] + self._positions()

    def denoise(self, x_t: Array, t: Array, hidden: Array) -> Array:
        """Returns the denoiser's logits, float32 [..., K].

        x_t: {0, 1} [..., K], t: int [...] in 1..T (the network counts from 0), hidden: [..., D].
        """
        return self.denoiser(x_t, t - 1, hidden)

    def features(self, bits: Array, labels: Array | Text, layer: int) -> Array:
        """Returns the representation, float32 [B, N, D]: the residual stream after block `layer`.

        bits: {0, 1} [B, N, K], labels: a condition, by custom the null one; blocks count from
        0 and later ones are not computed. Raises UserError for a layer that does not exist.
        """
        if not 0 <= layer < self.depth:
            raise UserError(f"layer={layer} does not exist; legal: 0..{self.depth - 1}")
        x, _ = self._residual(bits, self.condition(labels), None, True, first=layer + 1)
        return x[:, self.prefix :]

    def features_all(self, bits: Array, labels: Array | Text) -> Array:
        """Returns the `features` of all layers, float32 [depth, B, N, D]."""
        _, streams = self._residual(bits, self.condition(labels), None, True, collect=True)
        return streams[:, :, self.prefix :]

    def pooled(self, bits: Array) -> Array:
        """Returns one vector per image and layer, float32 [B, depth, D]: the mean over the tokens
        of `features_all`, of the null condition.

        bits: {0, 1} [B, N, K].
        """
        return self.features_all(bits, self.null(len(bits))).mean(axis=2).swapaxes(0, 1)

    def tokens(self, bits: Array, condition: Array, mask: Array | None) -> Array:
        """Returns the transformer's input, float32 [B, P + N, D], the condition [B, P, D] first."""
        if bits.shape[1:] != (self.length, self.bits):
            raise ValueError(f"bits {bits.shape} are not [batch, {self.length}, {self.bits}]")
        x = self.embed(bits).astype(jnp.float32)
        if mask is not None:
            x = jnp.where(mask[..., None], self.mask_token, x)
        return jnp.concatenate([condition, x], axis=1)

    def _positions(self) -> Array:
        """The position embedding, float32 [N, D], at the model's grid."""
        if self.position_grid in (None, self.grid):
            return self.position
        picture = self.position.reshape(*self.position_grid, self.width)
        scaled = jax.image.resize(picture, (*self.grid, self.width), "cubic")
        return scaled.reshape(self.length, self.width)

    def _residual(
        self, bits: Array, condition: Any, mask: Array | None, deterministic: bool, **how: Any
    ) -> tuple[Array, Any]:
        # bits: [batch, length, bits], mask: [batch, length]
        told = condition if isinstance(condition, Prefix) else Prefix(condition, condition)
        x = self.tokens(bits, told.tokens, mask)
        modulation = self.modulation(told.pooled) if self.adaln else None
        seen = told.mask
        if seen is not None:
            seen = jnp.pad(seen, ((0, 0), (0, self.length)), constant_values=True)
        head_dim = self.width // self.heads
        rope = grid_table(self.grid, head_dim, prefix=self.prefix, span=self.rope_grid)
        how = {"remat": self.remat, "deterministic": deterministic, **how}
        return scan_layers(self.layers, self.depth, x, modulation, seen, rope, **how)


def at_grid(net: BiGR, grid: tuple[int, int], positions: str = "interpolated") -> BiGR:
    """Returns the model for another grid of tokens, which reads the same variables.

    positions  of the rotations: "interpolated", so that the angles stay those of training and
               neighbours come closer, or "extrapolated", so that neighbours stay as far apart and
               angles grow beyond those of training

    Raises UserError for other positions.
    """
    if positions not in POSITIONS:
        raise one_of("positions", positions, POSITIONS)
    known = net.position_grid or net.grid
    span = None if positions == "extrapolated" else net.rope_grid or net.grid
    return net.clone(
        grid=grid,
        rope_grid=None if span == grid else span,
        position_grid=None if known == grid else known,
        parent=None,
    )


def _size(
    depth: int,
    width: int,
    heads: int,
    head_blocks: int,
    head_width: int,
    bits: int = 24,
    grid: tuple[int, int] = (16, 16),
) -> dict[str, Any]:
    return {
        "depth": depth,
        "width": width,
        "heads": heads,
        "bits": bits,
        "grid": grid,
        "num_classes": 1000,
        "head_width": head_width,
        "head_blocks": head_blocks,
    }


# The published sizes, and B after LlamaGen-B; for ImageNet at 256 pixels, L-512 at 512.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "B": _size(12, 768, 12, 3, 768),
    "L": _size(24, 1024, 16, 3, 1024),
    "XL": _size(36, 1280, 20, 6, 1280),
    "XXL": _size(48, 1536, 24, 8, 1536),
    "L-512": _size(24, 1024, 16, 6, 1280, bits=32, grid=(32, 32)),
}


def named(name: str, **overrides: Any) -> BiGR:
    """Returns the model of a named size, with the fields that are given changed.

    Raises UserError for an unknown size or field.
    """
    if name not in SIZES:
        raise one_of("size", name, SIZES)
    fields = [f.name for f in dataclasses.fields(BiGR) if f.name not in ("parent", "name")]
    for field in overrides:
        if field not in fields:
            raise one_of("field of BiGR", field, fields)
    return BiGR(**{**SIZES[name], **overrides})
