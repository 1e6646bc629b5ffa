"""A decoder-only language model that keeps what it has read in a cache.

Source: Llama (arXiv 2302.13971), section 2.2: RMSNorm before every branch, rotary positions, and a
gated feed-forward layer.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.errors import UserError
from bigr_jax.nn.cached_attention import Cache, CachedAttention, Rows
from bigr_jax.nn.mlp import SwiGLU, swiglu_hidden
from bigr_jax.nn.norms import RMSNorm
from bigr_jax.nn.partition import named
from bigr_jax.nn.stack import scan_layers

Array = jax.Array


class DecoderLayer(nn.Module):
    """h = x + attention(norm(x)), then h + SwiGLU(norm(h)). Attributes: as of `DecoderLM`."""

    heads: int
    hidden: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Array,
        rows: Rows | None = None,
        deterministic: bool = True,
        state: Cache | None = None,
    ) -> Array | tuple[Array, Cache]:
        """Returns the next residual stream, float32, as x, and with a cache, `state`, also that."""
        how: dict[str, Any] = {"dropout": self.dropout, "dtype": self.dtype}
        attention = CachedAttention(self.heads, name="attention", **how)
        y, state = attention(RMSNorm(name="attention_norm")(x), state, rows, deterministic)
        x = x + y
        mlp = SwiGLU(self.hidden, name="mlp", **how)
        x = x + mlp(RMSNorm(name="mlp_norm")(x), deterministic)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        return x if state is None else (x, state)


class DecoderLM(nn.Module):
    """Tells the next token from those before it.

    Attributes:
      vocabulary: number of tokens.
      width, depth, heads: channels, layers, heads of the attention.
      hidden: features of the feed-forward layers; 0: 8/3 of the width, up to a multiple of 256.
      tied: the head shares the table of the embedding.
      dropout: rate at the end of every branch.
      remat, unroll: see `nn.stack`.
      dtype: of the products; residual stream, norms and logits are float32.

    Raises UserError where heads do not divide the width into even parts.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int = 0
    tied: bool = True
    dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(
                f"width={self.width} is not a multiple of 2 * heads = {2 * self.heads}, which "
                "rotations need"
            )
        hidden = self.hidden or swiglu_hidden(self.width)
        self.layers = DecoderLayer(self.heads, hidden, self.dropout, self.dtype)
        shape, normal = (self.vocabulary, self.width), nn.initializers.normal(0.02)
        self.table = self.param("table", named(normal, "vocab", "embed"), shape)
        self.norm = RMSNorm()
        if not self.tied:
            self.head = self.param("head", named(normal, "vocab", "embed"), shape)

    def __call__(self, tokens: Array, deterministic: bool = True) -> Array:
        """Returns the logits of every place's next token, float32 [batch, length, vocabulary].

        tokens: int [batch, length].
        """
        return self._told(tokens, None, None, deterministic)[0]

    def extend(
        self,
        tokens: Array,
        cache: Cache,
        length: Array,
        positions: Array | None = None,
        among: Array | None = None,
    ) -> tuple[Array, Cache]:
        """Returns the logits, float32 [batch, rows, vocabulary], of new tokens, and the cache with
        these in the slots from `length` on.

        tokens: int [batch, rows], length: int [batch], how many slots hold what was read before.
        The new ones follow one another, unless `positions`, int [batch, rows], and `among`, bool
        [rows, rows] or [batch, rows, rows], say which of them a new one sees: itself and its
        ancestors in a tree. Slots are not checked: those beyond the last overwrite what is there.
        Raises ValueError where there are more rows than slots.
        """
        # tokens: [batch, rows]
        rows, slots = tokens.shape[1], cache.key.shape[2]
        if rows > slots:
            raise ValueError(f"{rows} tokens do not fit a cache of {slots} slots")
        if positions is None:
            positions = length[:, None] + jnp.arange(rows)
        among = jnp.tril(jnp.ones((rows, rows), bool)) if among is None else among
        among = jnp.broadcast_to(among, (tokens.shape[0], rows, rows))
        # Slot s is the new token s - length.
        own = jnp.arange(slots) - length[:, None]
        picked = jnp.take_along_axis(among, jnp.clip(own, 0, rows - 1)[:, None], axis=2)
        visible = (own < 0)[:, None] | (picked & ((own >= 0) & (own < rows))[:, None])
        logits, found = self._told(tokens, Rows(length, positions, visible), cache, True)
        return logits, Cache(*found)

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """Returns a cache of zeros for sequences of at most `slots` tokens."""
        shape = (self.depth, batch, slots, self.heads, self.width // self.heads)
        return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

    def _told(
        self, tokens: Array, rows: Rows | None, cache: Cache | None, deterministic: bool
    ) -> tuple[Array, Any]:
        how: dict[str, Any] = {"remat": self.remat, "unroll": self.unroll}
        x = nn.with_logical_constraint(self.table[tokens], ("batch", "length", "act_embed"))
        x, cache = scan_layers(
            self.layers, self.depth, x, rows, deterministic=deterministic, states=cache, **how
        )
        head = self.table if self.tied else self.head
        logits = jnp.einsum(
            "bld,vd->blv",
            self.norm(x).astype(self.dtype),
            head.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits, cache
