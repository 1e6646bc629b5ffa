"""Routed attention, some regions of queries after the others.

The keys that belong to the queries of a step are gathered for that step alone. The backward pass
makes the logits again from the logarithms of the sums that the forward pass has kept, and adds the
gradients of keys and values up in place (FlashAttention, arXiv 2205.14135, section 3.2 and B).
Axes as in `ops.routing`; c regions of queries are taken at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigr_jax.ops import scan_choice as choice

Array = jax.Array

# Below every logit, yet finite: where a row sees nothing, differences are numbers.
LOWEST = -1e30


class Inputs(NamedTuple):
    """What attends: query [b, R, n, h, d], key [b, S, m, h, d], value [b, S, m, h, e], routes int32
    [b, R, k], seen bool [b or 1, S, m], the keys that are real, None for all, and weights float32
    [b, R, k], by which keys and values are multiplied, None for 1.
    """

    query: Array
    key: Array
    value: Array
    routes: Array
    seen: Array | None
    weights: Array | None


def gathered(array: Array, routes: Array) -> Array:
    """Returns the tokens [b, c, k m, ...] of the regions of [b or 1, S, m, ...] that routes
    [b, c, k] name, beside each other: regions of few tokens would leave the lanes of a TPU empty.
    """
    # A constant comes out of what is differentiated as NumPy's.
    array = jnp.asarray(array)
    if len(array) == 1:
        found = array[0][routes]
    else:
        found = jax.vmap(lambda part, route: part[route])(array, routes)
    return found.reshape(*found.shape[:2], -1, *found.shape[4:])


def softmax(logits: Array, seen: Array | None) -> tuple[Array, Array]:
    """Returns the shares along the last axis and the logarithms of their sums before division,
    both float32; a row that sees nothing has shares of zero.
    """
    if seen is not None:
        logits = jnp.where(seen, logits, LOWEST)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    shares = jnp.exp(logits - top)
    if seen is not None:
        shares = jnp.where(seen, shares, 0.0)
    total = jnp.maximum(shares.sum(-1, keepdims=True), 1e-30)
    return shares / total, (jnp.log(total) + top)[..., 0]


def attended(inputs: Inputs, scale: float) -> tuple[Array, Array]:
    """Returns what the queries find, float32 [b, c, n, h, e], and the logarithms of the sums,
    [b, c, h, n]; all keys are gathered at once.
    """
    logits, seen, weights = _logits(inputs, scale)
    if weights is not None:
        logits = logits * weights
    shares, sums = softmax(logits, seen)
    if weights is not None:
        shares = shares * weights
    value = gathered(inputs.value, inputs.routes)
    return dot("bchnx,bcxhe->bcnhe", shares.astype(value.dtype), value), sums


def apart() -> bool:
    """Whether examples are taken one after the other, so that a step stays in the cache of a CPU;
    not where they may lie on several devices.
    """
    return choice.platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def walk(inputs: Inputs, scale: float, chunk: int) -> Array:
    """Returns what the queries find, [b, R, n, h, e], as the query; `chunk` regions at once."""
    return _each(lambda part: _forward(part, scale, chunk, False), inputs)[0]


def _saved(inputs: Inputs, scale: float, chunk: int) -> tuple[Array, Any]:
    out, sums = _each(lambda part: _forward(part, scale, chunk, True), inputs)
    return out, (inputs, out, sums)


def _backward(scale: float, chunk: int, saved: Any, cotangent: Array) -> tuple[Any]:
    return (_each(functools.partial(_reverse, scale, chunk), *saved, cotangent),)


walk.defvjp(_saved, _backward)


def _each(function: Callable[..., Any], inputs: Inputs, *rows: Array) -> Any:
    """Returns function(inputs, *rows), example after example where that is better."""
    b = len(inputs.query)
    if b == 1 or not apart():
        return function(inputs, *rows)
    if inputs.seen is not None:
        inputs = inputs._replace(seen=jnp.broadcast_to(inputs.seen, (b, *inputs.seen.shape[1:])))

    def one(example: Any) -> Any:
        found = function(*jax.tree.map(lambda array: array[None], example))
        return jax.tree.map(lambda array: array[0], found)

    return jax.lax.map(one, (inputs, *rows))


def _forward(inputs: Inputs, scale: float, chunk: int, keep: bool) -> tuple[Array, ...]:
    """Returns what the queries find, and where `keep` the logarithms of the sums."""
    b, count, n, h, _ = inputs.query.shape
    chunk, steps = _evenly(count, chunk)

    def step(done: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
        at = _start(i, chunk, count)
        found = attended(_part(inputs, at, chunk), scale)
        # Without the sums where there is no room for them.
        pairs = zip(done, found, strict=False)
        return tuple(_put(array, part, at) for array, part in pairs), None

    out = jnp.zeros((b, count, n, h, inputs.value.shape[-1]), inputs.query.dtype)
    start: tuple[Array, ...] = (out, jnp.zeros((b, count, h, n))) if keep else (out,)
    return jax.lax.scan(step, start, jnp.arange(steps))[0]


def _reverse(
    scale: float, chunk: int, inputs: Inputs, out: Array, sums: Array, cotangent: Array
) -> Inputs:
    """Returns the gradients of what has one."""
    query, key, value = inputs[:3]
    count = query.shape[1]
    chunk, steps = _evenly(count, chunk)

    def step(done: tuple[Any, ...], i: Array) -> tuple[tuple[Any, ...], None]:
        rows, dk, dv = done
        at = _start(i, chunk, count)
        part = _part(inputs, at, chunk)
        mine, moved, total = (_cut(array, at, chunk) for array in (out, cotangent, sums))
        # Of the last step some regions belong to the one before, which has added theirs up.
        fresh = (at + jnp.arange(chunk) >= i * chunk)[:, None, None, None]
        found = _slopes(part, scale, mine, moved, total, fresh)
        rows = jax.tree.map(lambda array, part: _put(array, part, at), rows, found[0])
        return (rows, _added(dk, part.routes, found[1]), _added(dv, part.routes, found[2])), None

    rows = jax.tree.map(jnp.zeros_like, (query, inputs.weights))
    start = (rows, *(jnp.zeros(array.shape, jnp.float32) for array in (key, value)))
    (rows, dk, dv), _ = jax.lax.scan(step, start, jnp.arange(steps))
    found = (rows[0], dk.astype(key.dtype), dv.astype(value.dtype), None, None, rows[1])
    return Inputs(*found)  # type: ignore[arg-type]


def _slopes(
    part: Inputs, scale: float, out: Array, cotangent: Array, sums: Array, fresh: Array
) -> tuple[tuple[Array, Array | None], Array, Array]:
    """Returns the gradients of the queries, [b, c, n, h, d], and weights, [b, c, k], of a step, and
    those of the gathered keys and values, float32 [b, c, k m, h, ...], of `fresh` regions alone.
    """
    logits, seen, weights = _logits(part, scale)
    key, value = (gathered(array, part.routes) for array in (part.key, part.value))
    shares = jnp.exp((logits if weights is None else logits * weights) - sums[..., None])
    if seen is not None:
        shares = jnp.where(seen, shares, 0.0)
    along = dot("bcnhe,bcxhe->bchnx", cotangent, value)
    mean = dot("bcnhe,bcnhe->bchn", cotangent, out)[..., None]
    slope, dw = shares * ((along if weights is None else along * weights) - mean), None
    if weights is not None:
        dw = (slope * logits + shares * along).sum((2, 3))
        dw = dw.reshape((*part.routes.shape, -1)).sum(-1)
        slope, shares = slope * weights, shares * weights
    slope, shares = (scale * slope).astype(key.dtype), shares.astype(value.dtype)
    dq = dot("bchnx,bcxhd->bcnhd", slope, key)
    dk = dot("bchnx,bcnhd->bcxhd", slope, jnp.where(fresh, part.query, 0))
    dv = dot("bchnx,bcnhe->bcxhe", shares, jnp.where(fresh, cotangent, 0))
    return (dq, dw), dk, dv


def _logits(inputs: Inputs, scale: float) -> tuple[Array, Array | None, Array | None]:
    """Returns the logits, float32 [b, c, h, n, k m], and as such which of them count, and the
    weights.
    """
    key, seen, weights = gathered(inputs.key, inputs.routes), inputs.seen, inputs.weights
    logits = scale * dot("bcnhd,bcxhd->bchnx", inputs.query, key)
    if seen is not None:
        seen = gathered(seen, inputs.routes)[:, :, None, None]
    if weights is not None:
        weights = jnp.repeat(weights, inputs.key.shape[2], axis=-1)[:, :, None, None]
    return logits, seen, weights


def dot(axes: str, left: Array, right: Array) -> Array:
    """Returns a product, summed up in float32."""
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def _evenly(count: int, chunk: int) -> tuple[int, int]:
    """Returns how many regions a step takes, at most `chunk`, and how many steps there are."""
    steps = -(-count // chunk)
    return -(-count // steps), steps


def _start(i: Array, chunk: int, count: int) -> Array:
    return jnp.minimum(i * chunk, count - chunk)


def _cut(array: Array, at: Array, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, at, chunk, axis=1)


def _put(array: Array, part: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part.astype(array.dtype), at, axis=1)


def _part(inputs: Inputs, at: Array, chunk: int) -> Inputs:
    query, routes = (_cut(array, at, chunk) for array in (inputs.query, inputs.routes))
    weights = None if inputs.weights is None else _cut(inputs.weights, at, chunk)
    return inputs._replace(query=query, routes=routes, weights=weights)


def _added(array: Array, routes: Array, part: Array) -> Array:
    part = part.reshape(*routes.shape, *array.shape[2:])
    return jax.vmap(lambda a, route, more: a.at[route].add(more))(array, routes, part)
