"""Causal attention that can go on from the keys and values of what it has read."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.linear import Linear
from bigr_jax.ops.attention import softmax_attention
from bigr_jax.ops.rope import line_table, rotate

Array = jax.Array


class Cache(NamedTuple):
    """Keys, after their rotation, and values: [batch, slots, heads, head_dim], and of a stack of
    layers [layers, batch, slots, heads, head_dim].
    """

    key: Array
    value: Array


class Rows(NamedTuple):
    """Where new tokens of a sequence stand, of which a cache holds those before.

    start      int [batch], the slot of the first; the others follow it
    positions  int [batch, rows], their places in the sequence
    visible    bool [batch, rows, slots], what each attends to
    """

    start: Array
    positions: Array
    visible: Array


class CachedAttention(nn.Module):
    """Causal multi-head attention with rotary positions.

    Attributes:
      heads: number of heads, each of width / heads channels.
      base: of the frequencies of the rotations.
      dropout: rate on the result.
      dtype: of the matrix products.
    """

    heads: int
    base: float = 10000.0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        u: Array,
        cache: Cache | None = None,
        rows: Rows | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Cache | None]:
        """Returns the mixed tokens, `dtype` [batch, length, width], and the cache with the new ones
        in it.

        u: [batch, length, width]. Without a cache a token attends to itself and to those before it
        in `u`; with one, as `rows` says.
        """
        width, heads = u.shape[-1], self.heads
        names = ("embed", None, "heads", "head_dim")
        qkv = Linear((3, heads, width // heads), names, dtype=self.dtype, name="qkv")(u)
        query, key, value = (qkv[:, :, place] for place in range(3))
        positions: Any = jnp.arange(u.shape[1]) if rows is None else rows.positions
        table = line_table(positions, width // heads, self.base)
        query, key = rotate(query, table), rotate(key, table)
        if cache is None or rows is None:
            y = softmax_attention(query, key, value, causal=True)
        else:
            cache = Cache(
                *(_written(*pair, rows.start) for pair in zip(cache, (key, value), strict=True))
            )
            y = softmax_attention(query, cache.key, cache.value, mask=rows.visible)
        y = Linear((width,), ("heads", "head_dim", "embed"), dtype=self.dtype, name="out")(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic), cache


def _written(slots: Array, new: Array, start: Array) -> Array:
    # slots: [batch, slots, heads, head_dim], new: [batch, rows, heads, head_dim]
    put = jax.vmap(lambda old, rows, at: jax.lax.dynamic_update_slice_in_dim(old, rows, at, 0))
    return put(slots, new.astype(slots.dtype), start)
