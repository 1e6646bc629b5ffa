"""Self-attention on maps of tokens: routed between regions, or restricted in other ways, or dense.

All kinds share one frame: queries, keys and values of one linear layer, what the kind makes of
them, a depthwise convolution of the values (local enhancement, LEPE) added to it, and a linear
layer behind. x: [batch, height, width, channels] -> `dtype`, the same shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.errors import UserError, one_of
from bigr_jax.nn.conv import DepthwiseConv
from bigr_jax.nn.linear import Linear
from bigr_jax.ops import regions as cutting
from bigr_jax.ops.attention import softmax_attention
from bigr_jax.ops.routing import bilevel_attention, routed_attention, weighted_route

Array = jax.Array


def _mean(part: Array, real: np.ndarray) -> Array:
    # part: [batch, regions, tokens, heads, head_dim], of which a region may have none
    total = jnp.where(real, part.astype(jnp.float32), 0).sum(axis=2, keepdims=True)
    return total / np.maximum(real.sum(axis=2, keepdims=True), 1)


def _max(part: Array, real: np.ndarray) -> Array:
    most = jnp.where(real, part, jnp.finfo(part.dtype).min).max(axis=2, keepdims=True)
    return jnp.where(real.any(axis=2, keepdims=True), most, 0)


POOLS: Mapping[str, Callable[[Array, np.ndarray], Array]] = {"mean": _mean, "max": _max}


class MapAttention(nn.Module):
    """What the kinds have in common; a kind is a subclass with its own `attend`.

    Attributes:
      heads: number of heads, each of channels / heads channels.
      local: side of the kernel of the depthwise convolution; 0: there is none.
      bias: the linear layer before has one; that behind always does.
      of_input: the convolution sees the input in place of the values, as the published dense layers
        do.
      by_width: logits are divided by the square root of all channels, as published of bi-level
        routing, not of those of a head.
      dtype: of the matrix products; logits and softmax are float32.
    """

    heads: int
    local: int = 5
    bias: bool = True
    of_input: bool = False
    by_width: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the mixed map. Raises UserError where the channels do not suit the heads."""
        width, heads = x.shape[-1], self.heads
        if width % heads:
            raise UserError(f"width={width} is not a multiple of heads={heads}")
        names = ("embed", None, "heads", "head_dim")
        qkv = Linear((3, heads, width // heads), names, self.bias, dtype=self.dtype, name="qkv")(x)
        query, key, value = (qkv[:, :, :, part] for part in range(3))
        y = self.attend(query, key, value).reshape(x.shape)
        if self.local:
            seen = x if self.of_input else value.reshape(x.shape)
            y = y + DepthwiseConv(self.local, self.dtype, name="local")(seen)
        return Linear((width,), ("mlp", "embed"), True, dtype=self.dtype, name="out")(y)

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Returns what the queries gather of the values, as value; all three: [batch, height,
        width, heads, head_dim].
        """
        raise NotImplementedError

    def scale(self, query: Array) -> float:
        """Returns the factor of the logits."""
        return float((query.shape[-1] * (self.heads if self.by_width else 1)) ** -0.5)

    def _within(self, parts: tuple[Array, Array, Array], mask: Any = None) -> Array:
        """Returns dense attention within each group, parts: [batch, groups, tokens, heads,
        head_dim], mask: bool [groups, tokens], True = a token, or None.
        """
        batch, groups = parts[0].shape[:2]
        # The operation divides by the square root of the channels of a head.
        query = parts[0] * (self.scale(parts[0]) * parts[0].shape[-1] ** 0.5)
        query, key, value = (part.reshape(-1, *part.shape[2:]) for part in (query, *parts[1:]))
        if mask is not None:
            mask = jnp.tile(jnp.asarray(mask), (batch, 1))
        y = softmax_attention(query, key, value, key_mask=mask)
        return y.reshape(batch, groups, *y.shape[1:])


class Routed(MapAttention):
    """Bi-level routing attention: a region attends to the tokens of those regions that suit it.

    Attributes: beside those of `MapAttention`
      regions: of the map, along either side.
      topk: regions that a region attends to.
      soft: keys and values of a region are weighted by how well it suits, among those chosen.
      pool: "mean" or "max": a region has one key and value, that of all its tokens; "": all.
      form: of the operation, see `ops.routing`.

    Source: BiFormer (arXiv 2303.08810), section 3.2 and algorithm 1; `soft` and `pool` are options
    of the published code.
    """

    regions: int = 7
    topk: int = 4
    soft: bool = False
    pool: str = ""
    form: str = "auto"

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Returns the attention; the routes, int [batch, regions^2, topk], go to the collection
        "intermediates" where that is asked for. Raises UserError for an unknown `pool`.
        """
        cut = (self.regions, self.regions)
        how: dict[str, Any] = {"scale": self.scale(query), "form": self.form}
        if self.pool:
            y, routes = self._pooled(query, key, value, cut, how)
        else:
            y, routes = bilevel_attention(
                query, key, value, regions=cut, topk=self.topk, soft=self.soft, **how
            )
        self.sow("intermediates", "routes", routes)
        return y

    def _pooled(
        self, query: Array, key: Array, value: Array, cut: tuple[int, int], how: dict[str, Any]
    ) -> tuple[Array, Array]:
        if self.pool not in POOLS:
            raise one_of("pool", self.pool, POOLS)
        size, kind = query.shape[1:3], POOLS[self.pool]
        mask = cutting.valid(size, cut)
        query, key, value = (cutting.split(part, cut) for part in (query, key, value))
        masks: dict[str, Any] = {"query_mask": mask[None], "key_mask": mask[None]}
        routes, weights = weighted_route(query, key, topk=self.topk, **masks)
        real = mask[None, :, :, None, None]
        y = routed_attention(
            query,
            kind(key, real).astype(key.dtype),
            kind(value, real).astype(value.dtype),
            routes,
            # A region at the border may have no token.
            key_mask=np.any(mask[None], axis=2, keepdims=True),
            weights=weights if self.soft else None,
            **how,
        )
        return cutting.join(y, size, cut), routes


class Windows(MapAttention):
    """Attention within each region of the map: local windows that do not shift.

    Attributes: beside those of `MapAttention`
      regions: of the map, along either side.
      dilated: a region is made of tokens that lie evenly spread over the map.

    Source: Swin (arXiv 2103.14030) and, dilated, the grid attention of MaxViT (arXiv 2204.01697).
    """

    regions: int = 7
    dilated: bool = False

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Returns the attention."""
        return self._cut((query, key, value), (self.regions, self.regions), self.dilated)

    def _cut(
        self, parts: tuple[Array, Array, Array], regions: tuple[int, int], dilated: bool
    ) -> Array:
        size = parts[0].shape[1:3]
        query, key, value = (cutting.split(part, regions, dilated=dilated) for part in parts)
        mask = cutting.valid(size, regions, dilated=dilated)
        y = self._within((query, key, value), None if mask.all() else mask)
        return cutting.join(y, size, regions, dilated=dilated)


class Stripes(Windows):
    """Half of the heads attend within horizontal stripes of the map, half within vertical ones.

    Attributes: as of `Windows`; `regions` is the number of stripes.

    Source: the cross-shaped windows of CSWin (arXiv 2107.00652); with stripes of one token, axial.
    """

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Returns the attention. Raises UserError for a single head."""
        half = self.heads // 2
        if not half:
            raise UserError("stripes need two heads or more, one for rows and one for columns")
        first = (query[..., :half, :], key[..., :half, :], value[..., :half, :])
        second = (query[..., half:, :], key[..., half:, :], value[..., half:, :])
        rows = self._cut(first, (self.regions, 1), False)
        columns = self._cut(second, (1, self.regions), False)
        return jnp.concatenate([rows, columns], axis=-2)


class Pooled(MapAttention):
    """All tokens attend to the means of keys and values over patches of the map.

    Attributes: beside those of `MapAttention`
      ratio: side of a patch in tokens.

    Source: the spatial reduction of PVT v2 (arXiv 2106.13797), with means as in its linear kind.
    """

    ratio: int = 2

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Returns the attention; patches at the border may be smaller."""
        size = query.shape[1:3]
        patches = (-(-size[0] // self.ratio), -(-size[1] // self.ratio))
        real = cutting.valid(size, patches)[None, :, :, None, None]

        def mean(part: Array) -> Array:
            return _mean(cutting.split(part, patches), real)[:, None, :, 0].astype(part.dtype)

        flat = query.reshape(len(query), 1, -1, *query.shape[3:])
        return self._within((flat, mean(key), mean(value))).reshape(query.shape)


class Dense(MapAttention):
    """All tokens attend to all."""

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Returns the attention."""
        parts = [part.reshape(len(part), 1, -1, *part.shape[3:]) for part in (query, key, value)]
        return self._within((parts[0], parts[1], parts[2])).reshape(value.shape)


KINDS: Mapping[str, Callable[..., MapAttention]] = {
    "routed": Routed,
    "windows": Windows,
    "dilated": functools.partial(Windows, dilated=True),
    "stripes": Stripes,
    "pooled": Pooled,
    "dense": Dense,
}


def make(kind: str, **options: Any) -> MapAttention:
    """Returns a new module of a kind; it gets those of `regions`, `topk`, `ratio` and `form` that
    it has. Raises UserError for an unknown kind.
    """
    if kind not in KINDS:
        raise one_of("attention", kind, KINDS)
    made = KINDS[kind]
    kind_of: Any = made.func if isinstance(made, functools.partial) else made
    known = {field.name for field in dataclasses.fields(kind_of)}
    own = {"regions", "topk", "ratio", "form"}
    return made(**{key: value for key, value in options.items() if key in known or key not in own})
