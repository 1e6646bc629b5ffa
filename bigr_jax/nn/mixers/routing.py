"""Bi-level routing attention as a mixer of sequences."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.nn.attention import SelfAttention
from bigr_jax.nn.conv import DepthwiseConv
from bigr_jax.ops import regions as cutting
from bigr_jax.ops.attention import softmax_attention
from bigr_jax.ops.rope import rotate
from bigr_jax.ops.routing import route, routed_attention

Array = jax.Array


class Routing(SelfAttention):
    """Bi-level routing attention: regions of the sequence attend to those that suit them.

    Where the sequence ends with a map, its regions are those of the map, and the tokens in front of
    it, such as a class, attend to all and are seen by all. Without a map a region is a run of
    tokens.

    Attributes: beside those of `SelfAttention`
      grid: (height, width) of the map; None: there is none.
      regions: of the map along either side; a sequence without a map has the square of it.
      topk: regions that a region attends to, or all where there are fewer.
      local: side of the kernel of a depthwise convolution of the map's values; 0: there is none.

    Source: BiFormer (arXiv 2303.08810), section 3.2; the tokens in front are an addition.
    """

    grid: tuple[int, int] | None = None
    regions: int = 4
    topk: int = 4
    local: int = 5

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        rope: Array | np.ndarray | None,
    ) -> Array:
        """Returns the mixed values. Raises UserError for a map that the sequence does not hold."""
        size, cut = self._size(query.shape[1])
        front = query.shape[1] - math.prod(size)

        def parts(x: Array) -> Array:
            return cutting.split(x[:, front:].reshape(len(x), *size, *x.shape[2:]), cut)

        real = jnp.asarray(cutting.valid(size, cut))[None]
        if mask is not None:
            real = real & parts(mask)
        # By what tokens are, not where: rotations would cancel out in the means.
        topk = min(self.topk, math.prod(cut))
        routes = route(parts(query), parts(key), topk=topk, query_mask=real, key_mask=real)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        keys, values = parts(key), parts(value)
        if front:
            keys, values, real, routes = _with_front(
                keys, values, real, routes, key[:, :front], value[:, :front], mask
            )
        y = routed_attention(parts(query), keys, values, routes, key_mask=real)
        y = cutting.join(y, size, cut)
        if self.grid is not None and self.local:
            y = y + self._local(value[:, front:], mask, front)
        y = y.reshape(len(y), -1, *y.shape[3:])
        if not front:
            return y
        first = softmax_attention(query[:, :front], key, value, key_mask=mask)
        return jnp.concatenate([first, y], axis=1)

    def _size(self, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
        if self.grid is None:
            return (1, length), (1, self.regions**2)
        if math.prod(self.grid) > length:
            raise UserError(f"a sequence of {length} tokens does not hold a map of {self.grid}")
        return self.grid, (self.regions, self.regions)

    def _local(self, value: Array, mask: Array | None, front: int) -> Array:
        assert self.grid is not None
        if mask is not None:
            value = jnp.where(mask[:, front:, None, None], value, 0)
        flat = value.reshape(len(value), *self.grid, -1)
        near = DepthwiseConv(self.local, self.dtype, name="local")(flat)
        return near.reshape(len(value), *self.grid, *value.shape[2:])


def _with_front(
    keys: Array,
    values: Array,
    real: Array,
    routes: Array,
    key: Array,
    value: Array,
    mask: Array | None,
) -> tuple[Array, Array, Array, Array]:
    """Returns keys and values [batch, regions, tokens, heads, head_dim], which of them count, and
    routes, with the tokens in front, [batch, front, heads, head_dim], as more regions to which all
    are routed.
    """
    count, tokens = keys.shape[1:3]
    front = key.shape[1]
    more = -(-front // tokens)

    def filled(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, more * tokens - front), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(len(x), more, tokens, *x.shape[2:])

    seen = jnp.ones((1, front), bool) if mask is None else mask[:, :front]
    real = jnp.broadcast_to(real, (len(seen), *real.shape[1:]))
    always = jnp.broadcast_to(count + jnp.arange(more), (*routes.shape[:2], more))
    return (
        jnp.concatenate([keys, filled(key)], axis=1),
        jnp.concatenate([values, filled(value)], axis=1),
        jnp.concatenate([real, filled(seen)], axis=1),
        jnp.concatenate([routes, always.astype(routes.dtype)], axis=2),
    )
