"""Routed attention as a Pallas kernel for a TPU.

A step of the grid (example, region of queries, some of its routes) reads the regions of keys and
values that the routes name: the routes are there before the kernel starts, so that the next regions
are on their way while the present ones are multiplied. What a region of queries has found so far
stays in the core's own memory, with the greatest logit and the sum (online softmax, arXiv
2205.14135, section 3.1). No copy of gathered keys is made; each key is read once for every region
of queries that is routed to it.

Heads that share lanes are one product: the queries stand below each other once for every head, with
zeros in the lanes of the others. A product over 32 channels takes as long as one over 128. Small
regions waste what a tile leaves empty: of 4 queries, two heads fill one tile of 8 rows, and one
region of 16 keys an eighth of the lanes of its logits. So many regions of keys are taken in a step
that they fill the lanes, and they are multiplied as one where whole tiles lie beneath each other.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bigr_jax.ops import scan_choice as choice
from bigr_jax.ops.routed_walk import LOWEST, Inputs, gathered, walk

Array = jax.Array

LANES, ROWS = 128, 8
# Routes of a step at most: each is two arguments of the kernel.
SLOTS = 32
# Logits of a step, in float32: of more the core's memory has no room for all that is made of them.
MOST = 2**18
# Routes that lie ready at once, in a memory of a MiB that holds other things too.
READY = 2**16


class Layout(NamedTuple):
    """How a product is cut: `together` heads share lanes, `slots` routes are taken in a step."""

    heads: int
    together: int
    slots: int
    steps: int


def attend(inputs: Inputs, scale: float, chunk: int, interpret: bool) -> Array:
    """Returns what `walk` does, whose backward pass is taken, from the arguments on. So is `walk`
    itself for regions that are too large for the core's memory, and on a mesh of several devices
    unless a `shard_map` takes all its axes: the compiler cannot divide a kernel.

    Raises ValueError where the platform is no TPU and `interpret` is not set.
    """

    def walked(inputs: Inputs) -> Array:
        return walk(inputs, scale, chunk)

    cut = layout(inputs)
    rows, keys = cut.together * inputs.query.shape[2], cut.slots * inputs.key.shape[2]
    if not choice.kernels_run(interpret) or rows * keys > MOST:
        return walked(inputs)

    def values(inputs: Inputs) -> Array:
        return _in_groups(inputs, scale, interpret)

    return choice.recomputed(values, walked)(inputs)


def layout(inputs: Inputs) -> Layout:
    """Returns how heads and routes are taken together."""
    h, d = inputs.query.shape[3:]
    e, k, m = inputs.value.shape[-1], inputs.routes.shape[2], inputs.key.shape[2]
    whole = [t for t in range(1, h + 1) if h % t == 0 and t * d % LANES == t * e % LANES == 0]
    several = [t for t in range(1, min(k, SLOTS) + 1) if k % t == 0]
    slots = min((t for t in several if t * m >= LANES), default=max(several))
    return Layout(h, min(whole, default=h), slots, k // slots)


def _in_groups(inputs: Inputs, scale: float, interpret: bool) -> Array:
    """Runs the kernel for as many examples at once as have their routes ready."""
    b = len(inputs.query)
    each = inputs.routes[0].size
    group = max(t for t in range(1, b + 1) if b % t == 0 and t * each <= max(READY, each))
    if inputs.seen is not None:
        # Few and small: they are put in order beforehand.
        inputs = inputs._replace(seen=gathered(inputs.seen, inputs.routes).astype(jnp.float32))
    if group == b:
        return _emit(inputs, scale, interpret)
    parts = jax.tree.map(lambda a: a.reshape(b // group, group, *a.shape[1:]), inputs)
    found = jax.lax.map(lambda part: _emit(part, scale, interpret), parts)
    return found.reshape(b, *found.shape[2:])


def _emit(inputs: Inputs, scale: float, interpret: bool) -> Array:
    query, key, value, routes, seen, _ = inputs
    (b, count, n, h, d), (m, e), k = query.shape, value.shape[2::2], routes.shape[2]
    cut = layout(inputs)
    query, key, value = (a.reshape(*a.shape[:3], -1) for a in (query, key, value))

    def region(slot: int, width: int) -> pl.BlockSpec:
        def place(b: Any, r: Any, j: Any, routes: Any) -> tuple[Any, ...]:
            return b, routes[(b * count + r) * k + j * cut.slots + slot], 0, 0

        return pl.BlockSpec((1, 1, m, width), place)

    def own(b: Any, r: Any, j: Any, routes: Any) -> tuple[Any, ...]:
        return b, r, 0, 0

    shown = [] if seen is None else [seen.reshape(b, count, cut.steps, 1, cut.slots * m)]
    line = pl.BlockSpec((1, 1, 1, 1, cut.slots * m), lambda b, r, j, routes: (b, r, j, 0, 0))
    rows = h * n
    found = pl.pallas_call(
        functools.partial(_kernel, cut=cut, scale=scale, masked=seen is not None),
        jax.ShapeDtypeStruct((b, count, n, h * e), query.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, count, cut.steps),
            in_specs=[
                pl.BlockSpec((1, 1, n, h * d), own),
                *(region(slot, h * d) for slot in range(cut.slots)),
                *(region(slot, h * e) for slot in range(cut.slots)),
                *(line for _ in shown),
            ],
            out_specs=pl.BlockSpec((1, 1, n, h * e), own),
            scratch_shapes=[
                pltpu.VMEM((rows, cut.together * e), jnp.float32),
                pltpu.VMEM((rows, 1), jnp.float32),
                pltpu.VMEM((rows, 1), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(inputs, cut),
        name="routed_attention",
        interpret=interpret,
    )(routes.reshape(-1), query, *[key] * cut.slots, *[value] * cut.slots, *shown)
    return found.reshape(b, count, n, h, e)


def _kernel(routes: Any, query: Any, *rest: Any, cut: Layout, scale: float, masked: bool) -> None:
    del routes
    keys, values = rest[: cut.slots], rest[cut.slots : 2 * cut.slots]
    found, best, total = rest[-3:]
    out = rest[-4]
    shown = rest[2 * cut.slots][0, 0, 0] > 0 if masked else None
    n, m = query.shape[2], keys[0].shape[2]
    together = cut.together
    d, e = query.shape[3] // cut.heads, values[0].shape[3] // cut.heads

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        found[...] = jnp.zeros(found.shape, found.dtype)
        best[...] = jnp.full(best.shape, LOWEST, best.dtype)
        total[...] = jnp.zeros(total.shape, total.dtype)

    last = pl.program_id(2) == cut.steps - 1
    for group in range(cut.heads // together):
        rows = slice(group * together * n, (group + 1) * together * n)
        wide = slice(group * together * d, (group + 1) * together * d)
        tall = slice(group * together * e, (group + 1) * together * e)
        asked = _stacked(query[0, 0, :, wide], together)
        pairs = _pieces([key[0, 0, :, wide] for key in keys])
        logits = [scale * _dot(asked, piece, 1) for piece in pairs]
        seen = None
        if shown is not None:
            size = m * cut.slots // len(pairs)
            seen = [shown[:, i * size : (i + 1) * size] for i in range(len(pairs))]
            logits = [jnp.where(s, x, LOWEST) for s, x in zip(seen, logits, strict=True)]
        before = best[rows]
        top = functools.reduce(jnp.maximum, [x.max(1, keepdims=True) for x in logits], before)
        shares = [jnp.exp(x - top) for x in logits]
        if seen is not None:
            shares = [jnp.where(s, x, 0.0) for s, x in zip(seen, shares, strict=True)]
        old = jnp.exp(before - top)
        best[rows] = top
        total[rows] = old * total[rows] + sum(x.sum(1, keepdims=True) for x in shares)
        parts = _pieces([value[0, 0, :, tall] for value in values])
        more = sum(
            _dot(share.astype(part.dtype), part, 0)
            for share, part in zip(shares, parts, strict=True)
        )
        found[rows] = old * found[rows] + more

        @pl.when(last)
        def _(rows: slice = rows, tall: slice = tall) -> None:
            mean = found[rows] / jnp.maximum(total[rows], 1e-30)
            out[0, 0, :, tall] = _unstacked(mean, together).astype(out.dtype)


def _stacked(query: Array, together: int) -> Array:
    """Returns [heads * n, channels of all]: the rows of a head have zeros in others' lanes."""
    if together == 1:
        return query
    owner = _owner(query.shape, together)
    # In float32: half tiles of bfloat16 cannot be put below each other.
    wide = query.astype(jnp.float32)
    parts = [jnp.where(owner == head, wide, 0.0) for head in range(together)]
    return jnp.concatenate(parts, axis=0).astype(query.dtype)


def _unstacked(found: Array, together: int) -> Array:
    """Returns [n, channels of all]: of every head its own lanes."""
    n = len(found) // together
    owner = _owner((n, found.shape[1]), together)
    parts = [found[head * n : (head + 1) * n] for head in range(together)]
    own = [jnp.where(owner == head, part, 0.0) for head, part in enumerate(parts)]
    return functools.reduce(jnp.add, own)


def _owner(shape: tuple[int, ...], together: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) // (shape[1] // together)


def _pieces(regions: list[Array]) -> list[Array]:
    """Returns the regions as one where they are of whole tiles."""
    tile = ROWS * 4 // regions[0].dtype.itemsize
    if len(regions) > 1 and len(regions[0]) % tile == 0:
        return [jnp.concatenate(regions, axis=0)]
    return regions


def _dot(left: Array, right: Array, axis: int) -> Array:
    numbers = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)


def _cost(inputs: Inputs, cut: Layout) -> pl.CostEstimate:
    """What XLA is told, to place other work around it."""
    (b, count, n, h, d), (m, e) = inputs.query.shape, inputs.value.shape[2::2]
    pairs, width = b * count * h * n * inputs.routes.shape[2] * m, d + e
    size = inputs.query.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * pairs * cut.together * width,
        transcendentals=pairs,
        bytes_accessed=size * width * (b * count * n * h + pairs // n),
    )
