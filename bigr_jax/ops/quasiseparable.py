"""Quasiseparable mixing of a sequence: two scans, one from each end, and a diagonal of its own.

The matrix M of a head, where a_t = dt_t A and C, B, dt of the two directions are apart, is

    i > j:  M_ij = (Cf_{i-1} . Bf_j) dtf_j exp(sum of af_k for j < k < i)
    i < j:  M_ij = (Cb_{i+1} . Bb_j) dtb_j exp(sum of ab_k for i < k < j)
    i = j:  M_ii = delta_i

so that a token reads the state that its neighbour left, with the neighbour's C.
Source: Hydra (arXiv 2407.09941), section 3, and its official implementation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigr_jax.ops import scan_choice as choice
from bigr_jax.ops import ssd as scans
from bigr_jax.ops.ssd import Chunk, Inputs

Array = jax.Array

# Of the mesh; see `train.sharding`.
AXIS = "seq"


# The states in which the scans from both ends begin, each [b, g, r, p, n].
Starts = tuple[Array, Array]


class Direction(NamedTuple):
    """What one of the two scans takes beside x and A.

    dt [b, l, h], positive, 0 where a token is to leave no trace; B and C [b, l, g, n]
    """

    dt: Array
    B: Array
    C: Array


def quasiseparable(
    x: Array,
    A: Array,
    forward: Direction,
    backward: Direction,
    delta: Array,
    *,
    form: str = "auto",
    chunk: int | None = None,
    initial_state: Array | None = None,
    segment_ids: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Returns M x for every head, as x.

    x: [b, l, h, p], A: [h], negative, delta: [b, l, h]
    form           of FORMS, which all give the same values and gradients; "pallas", a kernel for
                   a TPU, see `kernels.forms`; or "auto", the fastest, see `scan_choice`
    chunk          tokens that are multiplied at once, of any length; None: as the form likes it
    initial_state  [b, h, p, n], with which both scans start; zeros where None
    segment_ids    int [b, l]: tokens of different segments do not see each other
    interpret      "pallas" runs anywhere, slowly

    Decays, their sums and states are float32, products are in the type of x with float32
    accumulation. On a mesh with more than one device along "seq", each takes its part of the
    tokens, and only the states at the borders travel; segments are then scanned as a whole. Raises
    ValueError for another form, shapes that do not fit, and an initial state with segments, of
    which only the outer ones would see it.
    """
    choice.check(form, FORMS, chunk)
    if delta.shape != x.shape[:3]:
        raise ValueError(f"delta has the shape {delta.shape}, expected {x.shape[:3]}")
    if initial_state is not None and segment_ids is not None:
        raise ValueError("initial_state and segment_ids exclude each other")
    start = scans.start(x, A, {"forward.": forward, "backward.": backward}, initial_state)
    b, length, h = x.shape[:3]
    g = forward.B.shape[2]
    start = start.reshape(b, g, h // g, *start.shape[2:])
    run = scans.runs(segment_ids, b, length)
    f, k = (
        Inputs(x, w.dt.astype(jnp.float32), w.dt.astype(jnp.float32) * A, w.B, w.C, run)
        for w in (forward, backward)
    )
    delta = delta.astype(jnp.float32)
    if form == "official":
        return _official(f, k, delta, start, choice.CHUNK if chunk is None else chunk)
    f, k = f._replace(C=_shifted(f.C, True)), k._replace(C=_shifted(k.C, False))
    parts = dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)
    parts = 1 if run is not None else parts
    forms = FORMS | {choice.PALLAS: functools.partial(_kernel, interpret=interpret)}
    # By the whole length: sequences are put in parts for the sake of memory.
    mix = choice.resolved("quasiseparable", forms, form, length, chunk)
    if parts == 1:
        return mix(f, k, delta, (start, start))
    return _in_parts(f, k, delta, start, mix, parts)


def materialize(A: Array, forward: Direction, backward: Direction, delta: Array) -> Array:
    """Returns the matrices, float32 [b, h, l, l]; shapes as in `quasiseparable`."""
    length, h = delta.shape[1:]
    rows, columns = jnp.arange(length)[:, None], jnp.arange(length)[None, :]

    def half(way: Direction, below: bool) -> Array:
        repeats = h // way.B.shape[2]
        C = _shifted(way.C, below).astype(jnp.float32)
        pairs = jnp.einsum("bign,bjgn->bgij", C, way.B.astype(jnp.float32))
        a = jnp.swapaxes(way.dt.astype(jnp.float32) * A, 1, 2)
        to, exclusive = _sums(a, not below)
        seen = rows > columns if below else rows < columns
        exponent = jnp.where(seen, exclusive[..., :, None] - to[..., None, :], -jnp.inf)
        weights = jnp.exp(jnp.minimum(exponent, 0.0))
        dt = jnp.swapaxes(way.dt, 1, 2)[:, :, None, :]
        return jnp.repeat(pairs, repeats, axis=1) * weights * dt

    diagonal = jnp.where(rows == columns, jnp.swapaxes(delta, 1, 2)[..., None], 0.0)
    return half(forward, True) + half(backward, False) + diagonal


def _in_parts(
    f: Inputs, k: Inputs, delta: Array, start: Array, mix: Callable[..., Array], parts: int
) -> Array:
    """Every device's tokens on their own, from the states in which the others leave them."""
    length = f.x.shape[1]
    extra = -length % parts

    def padded(array: Array) -> Array:
        return jnp.pad(array, ((0, 0), (0, extra), *((0, 0),) * (array.ndim - 2)))

    def local(sides: tuple[Any, Any], delta: Array, start: Array) -> Array:
        f, k = (Inputs._make((*side, None)) for side in sides)
        starts = _arriving(f, start, False), _arriving(k, start, True)
        return mix(f, k, delta, starts)

    sides = jax.tree.map(padded, (tuple(f[:5]), tuple(k[:5])))
    rows = PartitionSpec(None, AXIS)
    mapped = jax.shard_map(
        local,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=rows,
        axis_names={AXIS},
        check_vma=False,
    )
    return mapped(sides, padded(delta), start)[:, :length]


def _arriving(way: Inputs, start: Array, reverse: bool) -> Array:
    """Returns the state that arrives at this device's tokens, [b, g, r, p, n]."""
    part = scans.split(way, choice.CHUNK)
    whole = scans.sums(part.a, reverse)
    added = jax.vmap(lambda c, s: scans.added_state(c, s, reverse))(part, whole)
    decays = scans.total(part.a)
    _, state = scans.carried(added, decays, part.run, jnp.zeros_like(start), reverse)

    def step(state: Array, device: tuple[Array, Array]) -> tuple[Array, Array]:
        more, decay = device
        return jnp.exp(decay)[..., None, None] * state + more, state

    devices = jax.lax.all_gather((state, decays.sum(0)), AXIS)
    _, before = jax.lax.scan(step, start, devices, reverse=reverse)
    return before[jax.lax.axis_index(AXIS)]


def _official(f: Inputs, k: Inputs, delta: Array, start: Array, chunk: int) -> Array:
    """Two causal scans, one of them over the flipped sequence, shifted and added up."""

    flipped = (part[:, ::-1] for part in k[:5])
    pairs = zip(f[:5], flipped, strict=True)
    x, dt, decays, B, C = (jnp.concatenate(pair) for pair in pairs)
    both = Inputs(x, dt, decays, B, C, _both_runs(f.run))
    double = jnp.concatenate([start, start])
    double = double.reshape(len(double), -1, *start.shape[3:])
    y = scans.FORMS["chunked"](both, double, chunk, False).y
    y = jnp.pad(y, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    if both.run is not None:
        same = jnp.pad(both.run[:, 1:] == both.run[:, :-1], ((0, 0), (1, 0)))
        y = jnp.where(same[..., None, None], y, 0)
    below, above = jnp.split(y, 2)
    return below + above[:, ::-1] + (delta[..., None] * f.x).astype(f.x.dtype)


def _matrix(f: Inputs, k: Inputs, delta: Array, starts: Starts, chunk: int) -> Array:
    """The whole matrix, which takes memory with the square of the length."""
    del chunk
    return _fused(f, k, delta, starts, f.x.shape[1])


def _fused(f: Inputs, k: Inputs, delta: Array, starts: Starts, chunk: int) -> Array:
    """One matrix per chunk for both directions and the diagonal, and two scans of states."""
    below, above, diagonal = _split(f, k, delta, chunk)
    y = _times(_weights(below, above, diagonal), below.x)
    for part, start, reverse in zip((below, above), starts, (False, True), strict=True):
        before, exclusive = _states(part, start, reverse)
        y += jax.vmap(scans.read)(part.C, exclusive, scans.opened(part.run, reverse), before)
    return scans.joined(y.astype(f.x.dtype), f.x.shape[1])


def _streamed(f: Inputs, k: Inputs, delta: Array, starts: Starts, chunk: int) -> Array:
    """As `_fused`, chunk after chunk; the backward pass makes the products of a chunk again."""
    below, above, diagonal = _split(f, k, delta, chunk)
    after, exclusive = _states(above, starts[1], True)
    opened = [scans.opened(below.run, reverse) for reverse in (False, True)]

    @jax.checkpoint
    def step(state: Array, item: Any) -> tuple[Array, Array]:
        below, above, diagonal, after, down, opened, kept = item
        whole, up = _sums(below.a, False)
        y = _times(_weights(below, above, diagonal), below.x)
        y += scans.read(below.C, up, opened[0], state)
        y += scans.read(above.C, down, opened[1], after)
        decay = jnp.where(kept[:, None, None], jnp.exp(scans.total(below.a)), 0.0)
        state = decay[..., None, None] * state + scans.added_state(below, whole, False)
        return state, y.astype(f.x.dtype)

    kept = scans.unbroken(below.run, False)
    items = (below, above, diagonal, after, exclusive, opened, kept)
    _, y = jax.lax.scan(step, starts[0], items)
    return scans.joined(y, f.x.shape[1])


def _sequential(f: Inputs, k: Inputs, delta: Array, starts: Starts, chunk: int) -> Array:
    """Token by token from both ends: little work, and much memory where gradients are needed."""
    del chunk
    y = _walked(f, starts[0], False) + _walked(k, starts[1], True)
    return (y + delta[..., None] * f.x).astype(f.x.dtype)


def _walked(way: Inputs, start: Array, reverse: bool) -> Array:
    """Returns what one direction adds, float32 [b, l, h, p]."""
    # A token's state is read by the neighbour that follows: in step with the scan, which then
    # changes the state in place.
    step = 1 if reverse else -1
    edge = -1 if reverse else 0
    following = way._replace(C=jnp.roll(way.C, step, axis=1))
    y = scans.walked(following, start.reshape(len(start), -1, *start.shape[3:]), reverse).y
    first = jnp.einsum("bgn,bgrpn->bgrp", way.C[:, edge].astype(jnp.float32), start)
    y = jnp.roll(y, -step, axis=1).at[:, edge].set(first.reshape(y[:, 0].shape))
    return jnp.where(scans.fresh(way, reverse)[..., None, None], 0.0, y)


def _kernel(
    f: Inputs, k: Inputs, delta: Array, starts: Starts, chunk: int, *, interpret: bool
) -> Array:
    # Few need Pallas, which takes long to import.
    from bigr_jax.ops.kernels import forms

    return forms.mix(f, k, delta, starts, chunk, interpret)


# All take the directions with C of the neighbour; "official" takes them as they are.
FORMS: dict[str, Callable[..., Array]] = {
    "sequential": _sequential,
    "official": _official,
    "matrix": _matrix,
    "fused": _fused,
    "streamed": _streamed,
}


def _split(f: Inputs, k: Inputs, delta: Array, chunk: int) -> tuple[Chunk, Chunk, Array]:
    """Returns the chunks of both directions, and the diagonal [chunks, b, g, r, q]."""
    diagonal = scans.split(f._replace(dt=delta), chunk).dt
    return scans.split(f, chunk), scans.split(k, chunk), diagonal


def _states(part: Chunk, start: Array, reverse: bool) -> tuple[Array, Array]:
    """Returns the states before the chunks, and the sums of the decays up to what a token reads."""
    whole, exclusive = _sums(part.a, reverse)
    added = jax.vmap(lambda c, s: scans.added_state(c, s, reverse))(part, whole)
    before, _ = scans.carried(added, scans.total(part.a), part.run, start, reverse)
    return before, exclusive


def _weights(below: Chunk, above: Chunk, diagonal: Array) -> Array:
    """Returns the matrices of chunks, [..., b, g, r, q, q], in float32: with one exponential for
    both sides.
    """
    q = below.run.shape[-1]
    rows, columns = jnp.arange(q)[:, None], jnp.arange(q)[None, :]
    (to_f, ex_f), (to_k, ex_k) = _sums(below.a, False), _sums(above.a, True)
    lower, upper = rows > columns, rows < columns
    exponent = jnp.where(
        lower,
        ex_f[..., :, None] - to_f[..., None, :],
        ex_k[..., :, None] - to_k[..., None, :],
    )
    same = below.run[..., :, None] == below.run[..., None, :]
    seen = (lower | upper) & same[..., None, None, :, :]
    # Masked before the exponential: what is not seen would overflow, and have no gradient.
    decay = jnp.exp(jnp.where(seen, jnp.minimum(exponent, 0.0), -jnp.inf))
    pairs = jnp.where(lower, _products(below), _products(above))
    dt = jnp.where(lower, below.dt[..., None, :], above.dt[..., None, :])
    return jnp.where(rows == columns, diagonal[..., None], pairs * decay * dt)


def _products(part: Chunk) -> Array:
    multiply = scans.products
    return jax.vmap(multiply)(part.C, part.B) if part.C.ndim == 5 else multiply(part.C, part.B)


def _times(weights: Array, x: Array) -> Array:
    return jnp.einsum(
        "...ij,...jp->...ip", weights.astype(x.dtype), x, preferred_element_type=jnp.float32
    )


def _sums(a: Array, reverse: bool) -> tuple[Array, Array]:
    """Returns the sums along the last axis with and without the token itself."""
    whole = scans.sums(a, reverse)
    # Not whole - a, which rounds: the two must agree where one follows the other.
    wide = [(0, 0)] * (a.ndim - 1)
    if reverse:
        return whole, jnp.pad(whole[..., 1:], [*wide, (0, 1)])
    return whole, jnp.pad(whole[..., :-1], [*wide, (1, 0)])


def _shifted(C: Array, forward: bool) -> Array:
    """Returns C of the neighbour before (or after) every token; zeros beyond the ends."""
    rest = ((0, 0),) * (C.ndim - 2)
    if forward:
        return jnp.pad(C[:, :-1], ((0, 0), (1, 0), *rest))
    return jnp.pad(C[:, 1:], ((0, 0), (0, 1), *rest))


def _both_runs(run: Array | None) -> Array | None:
    return None if run is None else jnp.concatenate([run, run[:, -1:] - run[:, ::-1]])
