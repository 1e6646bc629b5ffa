"""Attention of regions to the regions that they are routed to.

A map is cut into regions (`ops.regions`). The means of the queries and of the keys of a region say
how much it has to do with every other; each region keeps the `topk` that suit it best, and its
tokens attend to all tokens of those and to no others.
Source: BiFormer (arXiv 2303.08810), section 3.2. Beyond it, maps of any size are exact: a token
that fills up a region is neither in its mean nor in a softmax.
Below: b batch, R regions of n queries, S regions of m keys, k of them for each, h heads, d channels
of a head of queries and keys, e of values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.ops import regions as cutting
from bigr_jax.ops import scan_choice as choice
from bigr_jax.ops.routed_walk import Inputs, apart, attended, dot, softmax, walk

Array = jax.Array


class Row(NamedTuple):
    """The form that is taken up to so many keys of all regions, and so many logits."""

    keys: float
    logits: float
    form: str


# Platform, "" for any other -> rows, of which the first that fits is taken. On a CPU as
# `benchmarks/routing.py` measures it. On a TPU, where none has been timed, by the bytes that
# compiled programs move: among few keys all pairs cost less than the gathering of small regions.
# The kernel, which has been compiled for TPUs, is taken where it is asked for.
_LARGE = [Row(math.inf, 2**28, "gather"), Row(math.inf, math.inf, "walk")]
TABLE: Mapping[str, Sequence[Row]] = {
    "cpu": [Row(math.inf, math.inf, "walk")],
    "tpu": [Row(256, 2**28, "reference"), *_LARGE],
    "": _LARGE,
}
# Logits that "walk" makes at once: of a CPU, as many as its nearest cache holds.
LOGITS: Mapping[str, int] = {"cpu": 2**13, "": 2**24}


class Bilevel(NamedTuple):
    """What a map gives: `mixed` [b, H, W, h, e], and the `routes` taken, int32 [b, R, k]."""

    mixed: Array
    routes: Array


def affinity(
    query: Array,
    key: Array,
    *,
    query_mask: Array | np.ndarray | None = None,
    key_mask: Array | np.ndarray | None = None,
    scale: float | None = None,
) -> Array:
    """Returns the products of the means of regions, over the channels of all heads, float32
    [b, R, S]; that of a region of keys without a valid token is the least number.

    query: [b, R, n, h, d], key: [b, S, m, h, d], masks: bool [b or 1, R, n] and [b or 1, S, m],
    True = valid; scale: of the products, (h d)^-0.5 where None.
    """
    if query.shape[3:] != key.shape[3:]:
        raise ValueError(f"query {query.shape} and key {key.shape} differ in heads or channels")
    scale = math.prod(query.shape[3:]) ** -0.5 if scale is None else scale
    means = _means(query, query_mask), _means(key, key_mask)
    products = scale * jnp.einsum("brhd,bshd->brs", *means, precision="highest")
    if key_mask is None:
        return products
    return jnp.where(jnp.asarray(key_mask).any(-1)[:, None], products, jnp.finfo(jnp.float32).min)


def route(
    query: Array,
    key: Array,
    *,
    topk: int,
    query_mask: Array | np.ndarray | None = None,
    key_mask: Array | np.ndarray | None = None,
) -> Array:
    """Returns the `topk` regions of keys that suit each region of queries best, int32 [b, R, topk].

    Arguments as in `affinity`. No gradient goes through; a region of keys without a valid token
    comes after all others. Raises UserError for a `topk` that is not from 1 to S.
    """
    return weighted_route(query, key, topk=topk, query_mask=query_mask, key_mask=key_mask)[0]


def weighted_route(
    query: Array,
    key: Array,
    *,
    topk: int,
    query_mask: Array | np.ndarray | None = None,
    key_mask: Array | np.ndarray | None = None,
    scale: float | None = None,
    differentiable: bool = False,
) -> tuple[Array, Array]:
    """Returns what `route` does, and the softmax of the affinities that were chosen, float32
    [b, R, topk], for soft routing.

    differentiable  gradients go through the weights to query and key; the routes have none
    """
    if not 1 <= topk <= key.shape[1]:
        raise UserError(f"topk={topk} of {key.shape[1]} regions; legal: 1 to {key.shape[1]}")
    if not differentiable:
        query, key = jax.lax.stop_gradient((query, key))
    found = affinity(query, key, query_mask=query_mask, key_mask=key_mask, scale=scale)
    best, routes = jax.lax.top_k(found, topk)
    return routes, jax.nn.softmax(best, axis=-1)


def routed_attention(
    query: Array,
    key: Array,
    value: Array,
    routes: Array,
    *,
    scale: float | None = None,
    key_mask: Array | np.ndarray | None = None,
    weights: Array | None = None,
    form: str = "auto",
    chunk: int | None = None,
    interpret: bool = False,
) -> Array:
    """Returns softmax attention of every region's queries to the keys of the regions that it is
    routed to, [b, R, n, h, e], as the query.

    query: [b, R, n, h, d], key: [b, S, m, h, d], value: [b, S, m, h, e]
    routes     int32 [b, R, k], from 0 to S - 1, no region twice in a row; their order is of no
               matter
    scale      of the logits; d^-0.5 where None
    key_mask   bool [b or 1, S, m], True = may be attended to; queries that may attend to no key
               get zeros
    weights    [b, R, k], for soft routing: times keys and values; the kernel has none
    form       "reference", all pairs; "gather", a copy of the keys for every region of queries;
               "walk", some regions after the others, which keeps no logits for a backward pass;
               "pallas", a kernel for a TPU, see `kernels.routed`; or "auto", by platform and size
    chunk      regions that "walk" takes at once; None: as the platform likes it
    interpret  "pallas" runs anywhere, slowly

    Logits and softmax are float32, products in the type of the query with float32 accumulation.
    Raises ValueError for another form, weights in the kernel, and shapes that do not fit.
    """
    choice.check(form, FORMS, chunk)
    _check(query, key, value, routes, key_mask, weights)
    if weights is not None and form == choice.PALLAS:
        legal = ", ".join((choice.AUTO, *FORMS))
        raise ValueError(f"form is {form!r}, which takes no weights; legal with them: {legal}")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    seen = None if key_mask is None else jnp.asarray(key_mask)
    weights = None if weights is None else weights.astype(jnp.float32)
    inputs = Inputs(query, key, value, routes, seen, weights)
    form = form_of(inputs) if form == choice.AUTO else form
    chunk = chunk_of(inputs) if chunk is None else chunk
    if form == choice.PALLAS:
        # Few need Pallas, which takes long to import.
        from bigr_jax.ops.kernels import routed

        return routed.attend(inputs, scale, chunk, interpret)
    return FORMS[form](inputs, scale, chunk)


def bilevel_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    regions: Sequence[int],
    topk: int,
    routes: Array | None = None,
    soft: bool = False,
    dilated: bool = False,
    scale: float | None = None,
    form: str = "auto",
    chunk: int | None = None,
    interpret: bool = False,
) -> Bilevel:
    """Attends within a map, every region to the `topk` regions that suit it best.

    query: [b, H, W, h, d], key: [b, H', W', h, d], value: [b, H', W', h, e], often of one size
    regions  (rows, columns) into which both maps are cut, of any size; see `ops.regions`
    routes   int32 [b, R, k], taken in place of those that are found; `topk` is then of no matter
    soft     keys and values are weighted by the softmax of the affinities, without a gradient
    dilated  regions of tokens that lie apart
    Others as in `routed_attention`.

    Raises UserError for `regions` that are not two numbers from 1 on and a `topk` that is not from
    1 to R.
    """
    cut = functools.partial(cutting.split, regions=regions, dilated=dilated)
    q, k, v = cut(query), cut(key), cut(value)
    masks = [_mask(array.shape[1:3], regions, dilated) for array in (query, key)]
    weights = None
    if routes is None:
        routes, weights = weighted_route(q, k, topk=topk, query_mask=masks[0], key_mask=masks[1])
    elif soft:
        raise ValueError("soft weighs routes that are found here: it and routes exclude each other")
    mixed = routed_attention(
        q,
        k,
        v,
        routes,
        scale=scale,
        key_mask=masks[1],
        weights=weights if soft else None,
        form=form,
        chunk=chunk,
        interpret=interpret,
    )
    return Bilevel(cutting.join(mixed, query.shape[1:3], regions, dilated=dilated), routes)


def chunk_of(inputs: Inputs) -> int:
    """Returns how many regions of queries "walk" takes at once where nothing is said."""
    b, count = inputs.query.shape[:2]
    each = _logits(inputs) // (b * count if apart() else count)
    most = LOGITS.get(choice.platform(), LOGITS[""])
    return max(1, min(count, most // max(each, 1)))


def form_of(inputs: Inputs) -> str:
    """Returns the form that "auto" takes."""
    keys, logits = math.prod(inputs.key.shape[1:3]), _logits(inputs)
    rows = TABLE.get(choice.platform(), TABLE[""])
    return next(row.form for row in rows if keys <= row.keys and logits <= row.logits)


def _logits(inputs: Inputs) -> int:
    """Returns how many logits there are of what is routed."""
    return math.prod(inputs.query.shape[:4]) * inputs.routes.shape[2] * inputs.key.shape[2]


def _reference(inputs: Inputs, scale: float, chunk: int) -> Array:
    """All pairs, those of regions apart masked."""
    del chunk
    query, key, value, routes, seen, weights = inputs
    m = key.shape[2]
    key, value = (array.reshape(len(array), -1, *array.shape[3:]) for array in (key, value))
    chosen = routes[..., None] == jnp.arange(inputs.key.shape[1])
    # [b, R, h, n, S m]
    shown = jnp.repeat(chosen.any(-2), m, axis=-1)[:, :, None, None]
    if seen is not None:
        shown = shown & seen.reshape(len(seen), 1, 1, 1, -1)
    times: Array | float = 1.0
    if weights is not None:
        each = jnp.where(chosen, weights[..., None], 0).sum(-2)
        times = jnp.repeat(each, m, axis=-1)[:, :, None, None]
    logits = scale * times * dot("bcnhd,bxhd->bchnx", query, key)
    shares = times * softmax(logits, shown)[0]
    return dot("bchnx,bxhe->bcnhe", shares.astype(value.dtype), value).astype(query.dtype)


def _gather(inputs: Inputs, scale: float, chunk: int) -> Array:
    """One attention to copies of the keys, which take k times their memory."""
    del chunk
    return attended(inputs, scale)[0].astype(inputs.query.dtype)


FORMS: Mapping[str, Callable[[Inputs, float, int], Array]] = {
    "reference": _reference,
    "gather": _gather,
    "walk": walk,
}


def _means(array: Array, mask: Array | np.ndarray | None) -> Array:
    """Returns the means of the valid tokens of regions, float32 [b, R, h, d]; 0 of none."""
    wide = array.astype(jnp.float32)
    if mask is None:
        return wide.mean(2)
    shown = jnp.asarray(mask)[..., None, None]
    return jnp.where(shown, wide, 0).sum(2) / jnp.maximum(shown.sum(2), 1)


def _mask(size: Sequence[int], regions: Sequence[int], dilated: bool) -> np.ndarray | None:
    """Returns bool [1, R, tokens], None where every token is real."""
    shown = cutting.valid(size, regions, dilated=dilated)
    return None if shown.all() else shown[None]


def _check(
    query: Array,
    key: Array,
    value: Array,
    routes: Array,
    key_mask: Array | np.ndarray | None,
    weights: Array | None,
) -> None:
    """Raises ValueError, which names the argument, for shapes that do not fit."""
    b, count, _, h, d = query.shape
    sources, m = key.shape[1:3]
    many = routes.shape[-1]
    wanted = {
        "key": (key.shape, (b, sources, m, h, d)),
        "value": (value.shape, (b, sources, m, h, value.shape[-1])),
        "routes": (routes.shape, (b, count, many)),
    }
    if key_mask is not None:
        rows = 1 if len(key_mask) == 1 else b
        wanted["key_mask"] = (key_mask.shape, (rows, sources, m))
    if weights is not None:
        wanted["weights"] = (weights.shape, (b, count, many))
    for name, (shape, right) in wanted.items():
        if shape != right:
            raise ValueError(f"{name} has the shape {shape}, expected {right}")
