"""Encoders of sequences with any mixer of tokens, and the networks made of them: one that tells
hidden tokens, one that classifies sentences, one that classifies images.

Source: the BERT and ViT experiments of Hydra (arXiv 2407.09941), section 4 and appendix: BERT and
ViT whose attention and feed-forward layers are replaced by twice as many mixers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike

from bigr_jax.errors import UserError, one_of
from bigr_jax.nn.drop_path import DropPath, rates
from bigr_jax.nn.linear import FAN_IN, Linear
from bigr_jax.nn.mixers import make
from bigr_jax.nn.mlp import GeluMLP
from bigr_jax.nn.norms import LayerNorm
from bigr_jax.nn.partition import named
from bigr_jax.nn.stack import scan_layers

Array = jax.Array

POOLS = ("first", "mean")
_RESIDUAL = ("batch", "length", "act_embed")


class Layer(nn.Module):
    """A mixer, and with `hidden` a feed-forward layer, each with its residual and its norm.

    Attributes: as of `Encoder`.
    """

    mixer: str
    options: Mapping[str, Any]
    heads: int
    hidden: int
    norm_first: bool
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        deterministic: bool = True,
        drop_path: float | Array = 0.0,
    ) -> Array:
        """Returns the next residual stream, float32, as x; mask: as `nn.mixers` has it."""
        how: dict[str, Any] = {"dropout": self.dropout, "dtype": self.dtype}
        options = {**self.options, "kernel_init": FAN_IN}
        mixer = make(self.mixer, heads=self.heads, name="mixer", **how, **options)
        kept = lambda y: DropPath()(y, drop_path, deterministic)  # noqa: E731
        x = self._added(x, lambda u: kept(mixer(u, mask, None, deterministic)), "mixer_norm")
        if self.hidden:
            mlp = GeluMLP(self.hidden, name="mlp", **how)
            x = self._added(x, lambda u: kept(mlp(u, deterministic)), "mlp_norm")
        return nn.with_logical_constraint(x, _RESIDUAL)

    def _added(self, x: Array, branch: Any, name: str) -> Array:
        norm = LayerNorm(name=name)
        return x + branch(norm(x)) if self.norm_first else norm(x + branch(x))


class Encoder(nn.Module):
    """Layers of one form, one after another.

    Attributes:
      depth: number of layers.
      mixer: name of the mixer in `nn.mixers`; options: what `nn.mixers.make` takes beside it.
      heads: of attention, and of its like.
      hidden: features of the feed-forward layers; 0: there are none, as in Hydra.
      norm_first: norms stand before the branches, as in ViT, not after the sums, as in BERT; then
        the result has one more.
      dropout: rate at the end of every branch.
      drop_path: rate at which the last layer leaves its branches out; see `nn.drop_path`.
      remat, unroll: see `nn.stack`.
      dtype: of the products; the residual stream is float32.
    """

    depth: int
    mixer: str = "hydra"
    options: Mapping[str, Any] = FrozenDict()
    heads: int = 12
    hidden: int = 0
    norm_first: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        deterministic: bool = True,
        grid: tuple[int, int] | None = None,
    ) -> Array:
        """Returns float32 [batch, length, width], as x; mask and grid: as `nn.mixers` has them."""
        layer = Layer(
            self.mixer,
            {**self.options, "grid": grid},
            self.heads,
            self.hidden,
            self.norm_first,
            self.dropout,
            self.dtype,
            name="layers",
        )
        how: dict[str, Any] = {
            "remat": self.remat,
            "unroll": self.unroll,
            "deterministic": deterministic,
            "drop_path": rates(self.drop_path, self.depth) if self.drop_path else None,
        }
        x, _ = scan_layers(layer, self.depth, x, mask, **how)
        return LayerNorm(name="norm")(x) if self.norm_first else x


class MaskedModel(nn.Module):
    """Tells hidden tokens: BERT, with any mixer, whose head shares the table of its embedding.

    Attributes:
      vocabulary: number of tokens; the table has a multiple of 8 rows, as of the published ones.
      width: channels.
      encoder: the layers between.
      types: kinds of sentence that a token may be of, each a vector to add; 0: none.
      positions: longest sequence, of which every place has a vector to add; 0: none.
      dropout: rate on the embedding.
      epsilon: of the norms of the embedding and of the head; the published ones have 1e-12.
      spread: standard deviation of the table at the start. With the published 0.02 a network of 64
        channels did not learn recall, with 0.125 it did.
      dtype: of the products.
    """

    vocabulary: int
    width: int
    encoder: Encoder
    types: int = 0
    positions: int = 0
    dropout: float = 0.0
    epsilon: float = 1e-5
    spread: float = 0.02
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        mask: Array | None = None,
        types: Array | None = None,
        deterministic: bool = True,
        places: Array | None = None,
        choices: Array | None = None,
        told: bool = True,
    ) -> Array:
        """Returns the logits of every place, float32 [batch, length, rows of the table].

        tokens: int [batch, length], mask: bool [batch, length], False = padding, types: int [batch,
        length], all 0 where None, places: int [batch, n], those that are told, in place of all,
        choices: int [batch, length or n, m], the rows that are weighed there, in place of all.
        told=False returns what the logits would be made of, float32 [batch, length, width].
        Raises ValueError for a sequence longer than `positions`.
        """
        normal = nn.initializers.normal(self.spread)
        rows = -(-self.vocabulary // 8) * 8
        table = self.param("table", named(normal, "vocab", "embed"), (rows, self.width))
        x = table[tokens]
        if self.types:
            kinds = self.param("types", named(normal, None, "embed"), (self.types, self.width))
            x = x + kinds[jnp.zeros_like(tokens) if types is None else types]
        if self.positions:
            x = x + _places(self, tokens.shape[1], self.positions, self.width)
        x = LayerNorm(self.epsilon, name="embed_norm")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = self.encoder(x, mask, deterministic)
        if places is not None:
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        if not told:
            return x
        square = Linear((self.width,), ("embed", "mlp"), True, FAN_IN, self.dtype, name="head")
        x = LayerNorm(self.epsilon, name="head_norm")(nn.gelu(square(x), approximate=False))
        bias = self.param("bias", named(nn.initializers.zeros, "vocab"), (rows,))
        form = "bld,vd->blv"
        if choices is not None:
            form, table, bias = "bld,blmd->blm", table[choices], bias[choices]
        logits = jnp.einsum(
            form,
            x.astype(self.dtype),
            table.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits + bias


class SentenceClassifier(nn.Module):
    """Classifies sentences by their first token, as BERT does, or by the mean of all.

    Attributes:
      classes: number of classes; 1: a score.
      body: the model of hidden tokens whose head this one's takes the place of.
      pool: "first" or "mean".
      dropout: rate before the last layer.

    Source: BERT (arXiv 1810.04805), section 4.1 and its code: a dense layer, tanh, a linear one.
    """

    classes: int
    body: MaskedModel
    pool: str = "first"
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        mask: Array | None = None,
        types: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Returns logits, float32 [batch, classes].

        tokens, mask, types: as `MaskedModel` has them. Raises UserError for another `pool`.
        """
        if self.pool not in POOLS:
            raise one_of("finetune.pool", self.pool, POOLS)
        x = self.body(tokens, mask, types, deterministic, told=False)
        if self.pool == "first":
            x = x[:, 0]
        else:
            weight = jnp.ones(tokens.shape, x.dtype) if mask is None else mask.astype(x.dtype)
            x = jnp.einsum("bld,bl->bd", x, weight) / jnp.maximum(weight.sum(1), 1.0)[:, None]
        width = self.body.width
        x = jnp.tanh(Linear((width,), ("embed", "mlp"), True, FAN_IN, name="pooler")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return Linear((self.classes,), ("mlp", None), True, FAN_IN, name="classifier")(x)


class PatchClassifier(nn.Module):
    """Classifies images by their patches, read row by row, and the mean of what comes of them.

    Attributes:
      classes: number of classes.
      width: channels.
      patch: side of a patch in pixels.
      encoder: the layers between.
      positions: every place has a vector of its own; without, a mixer that sees no order sees none.
      dtype: of the products.
    """

    classes: int
    width: int
    patch: int
    encoder: Encoder
    positions: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> tuple[Array, Array]:
        """Returns logits, float32 [batch, classes], and features, float32 [batch, width].

        images: float [batch, height, width, channels] in [0, 1]. Raises UserError where patches do
        not cover them.
        """
        batch, height, width, channels = images.shape
        side = self.patch
        if height % side or width % side:
            raise UserError(f"patches of {side} pixels do not cover images of {height} x {width}")
        cut = (images * 2 - 1).reshape(batch, height // side, side, width // side, side, channels)
        patches = cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * channels)
        embed = Linear((self.width,), (None, "embed"), True, FAN_IN, self.dtype, name="embed")
        x = embed(patches).astype(jnp.float32)
        if self.positions:
            x = x + _places(self, x.shape[1], x.shape[1], self.width)
        grid = (height // side, width // side)
        features = self.encoder(x, None, deterministic, grid).mean(axis=1)
        head = Linear((self.classes,), ("embed", None), True, name="head")
        return head(features), features


def _places(module: nn.Module, length: int, most: int, width: int) -> Array:
    if length > most:
        raise ValueError(f"{length} tokens, positions are learned for {most}")
    init = named(nn.initializers.normal(0.02), "position", "embed")
    table: Array = module.param("position", init, (most, width))
    return table[:length]
