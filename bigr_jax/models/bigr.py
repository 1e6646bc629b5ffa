"""BiGR: a bidirectional transformer that predicts masked tokens of binary codes.

The transformer reads a class token and N tokens of K bits, some of them masked, and gives a hidden
vector per token, from which the denoiser of the transcoder tells the bits.
Source: BiGR (arXiv 2410.14672), section 3, and its official implementation.
"""

from __future__ import annotations

import dataclasses
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
from bigr_jax.nn.embed import ClassEmbed
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.mixers import CAUSAL
from bigr_jax.nn.mlp import swiglu_hidden
from bigr_jax.nn.norms import RMSNorm
from bigr_jax.nn.partition import named as with_names
from bigr_jax.nn.stack import scan_layers
from bigr_jax.ops.rope import grid_table

Array = jax.Array


class BiGR(nn.Module):
    """The transformer and its denoiser. Below: B images, N = rows * cols tokens, D = width.

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

    @property
    def length(self) -> int:
        """N, the number of tokens."""
        return self.grid[0] * self.grid[1]

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
        self.classes = ClassEmbed(self.num_classes, width)
        self.embed = Linear((width,), ("codes", "embed"), bias=True, dtype=dtype)
        self.mask_token = self.param("mask_token", with_names(normal(1.0), "embed"), (width,))
        if self.adaln:
            self.modulation = SharedModulation(dtype)
        self.layers = Block(
            heads=self.heads,
            hidden=self.ffn_hidden or swiglu_hidden(width),
            mixer=self.mixer,
            adaln=self.adaln,
            dropout=self.dropout,
            dtype=dtype,
        )
        self.norm = RMSNorm()
        position = with_names(normal(0.02), "position", "embed")
        self.position = self.param("position", position, (self.length, width))
        self.denoiser = Denoiser(self.bits, self.head_width, self.head_blocks, dtype)

    def __call__(
        self,
        bits: Array,
        labels: Array,
        mask: Array,
        x_t: Array,
        t: Array,
        deterministic: bool = True,
    ) -> Array:
        """Returns the denoiser's logits, float32 [B, N, K], at every token.

        bits: {0, 1} [B, N, K], labels: int [B], mask: bool [B, N], True = masked (its bits are not
        read), x_t: {0, 1} [B, N, K], t: int [B, N] in 1..T. Dropout draws from the rng "dropout".
        """
        hidden = self.hidden(bits, self.condition(labels), mask, deterministic)
        return self.denoise(x_t, t, hidden)

    def condition(self, labels: Array) -> Array:
        """Returns the embeddings, float32 [B, 1, D], of labels [B]; `num_classes` is no class."""
        return self.classes(labels)[:, None]

    def hidden(
        self, bits: Array, condition: Array, mask: Array | None, deterministic: bool = True
    ) -> Array:
        """Returns the vectors, float32 [B, N, D], on which the denoiser is conditioned.

        bits: {0, 1} [B, N, K], condition: [B, 1, D], from `condition` or a mixture of such,
        mask: bool [B, N], True = masked; None: nothing is masked. A causal model masks nothing: its
        vector of a token is the one that it has before it reads that token.
        """
        x, _ = self._residual(bits, condition, None if self.causal else mask, deterministic)
        x = self.norm(x)
        return (x[:, :-1] if self.causal else x[:, 1:]) + self.position

    def denoise(self, x_t: Array, t: Array, hidden: Array) -> Array:
        """Returns the denoiser's logits, float32 [..., K].

        x_t: {0, 1} [..., K], t: int [...] in 1..T (the network counts from 0), hidden: [..., D].
        """
        return self.denoiser(x_t, t - 1, hidden)

    def features(self, bits: Array, labels: Array, layer: int) -> Array:
        """Returns the representation, float32 [B, N, D]: the residual stream after block `layer`.

        bits: {0, 1} [B, N, K], labels: int [B], by custom all of the null class; blocks count from
        0 and later ones are not computed. Raises UserError for a layer that does not exist.
        """
        if not 0 <= layer < self.depth:
            raise UserError(f"layer={layer} does not exist; legal: 0..{self.depth - 1}")
        x, _ = self._residual(bits, self.condition(labels), None, True, first=layer + 1)
        return x[:, 1:]

    def features_all(self, bits: Array, labels: Array) -> Array:
        """Returns the `features` of all layers, float32 [depth, B, N, D]."""
        _, streams = self._residual(bits, self.condition(labels), None, True, collect=True)
        return streams[:, :, 1:]

    def pooled(self, bits: Array) -> Array:
        """Returns one vector per image and layer, float32 [B, depth, D]: the mean over the tokens
        of `features_all`, of the null class.

        bits: {0, 1} [B, N, K].
        """
        null = jnp.full(len(bits), self.num_classes)
        return self.features_all(bits, null).mean(axis=2).swapaxes(0, 1)

    def tokens(self, bits: Array, condition: Array, mask: Array | None) -> Array:
        """Returns the transformer's input, float32 [B, 1 + N, D], the class token first."""
        if bits.shape[1:] != (self.length, self.bits):
            raise ValueError(f"bits {bits.shape} are not [batch, {self.length}, {self.bits}]")
        x = self.embed(bits).astype(jnp.float32)
        if mask is not None:
            x = jnp.where(mask[..., None], self.mask_token, x)
        return jnp.concatenate([condition, x], axis=1)

    def _residual(
        self, bits: Array, condition: Array, mask: Array | None, deterministic: bool, **how: Any
    ) -> tuple[Array, Any]:
        # bits: [batch, length, bits], condition: [batch, 1, width], mask: [batch, length]
        x = self.tokens(bits, condition, mask)
        modulation = self.modulation(condition) if self.adaln else None
        rope = grid_table(self.grid, self.width // self.heads, prefix=1)
        how = {"remat": self.remat, "deterministic": deterministic, **how}
        return scan_layers(self.layers, self.depth, x, modulation, None, rope, **how)


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
