"""The kernels as forms of `ops.ssd` and `ops.quasiseparable`.

They work in chunks of whole lanes, whatever is asked for. The backward pass is that of the XLA
form "scanned" or "streamed", from the arguments on. The same form takes the kernel's place where
there are segments, and on a mesh of several devices unless a `shard_map` takes all its axes: the
compiler cannot divide a kernel. All raise ValueError where the platform is no TPU and
`interpret` is not set.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bigr_jax.ops import quasiseparable as mixing
from bigr_jax.ops import scan_choice as choice
from bigr_jax.ops import ssd as scans
from bigr_jax.ops.kernels.chunk_walk import Side, both_ways, chunk_of, one_way

Array = jax.Array


def scan(
    inputs: scans.Inputs, state: Array, chunk: int, reverse: bool, interpret: bool
) -> scans.Result:
    """Returns what `ssd` does, from its inputs."""
    streamed = functools.partial(_scanned, chunk=chunk, reverse=reverse)
    if not choice.kernels_run(interpret) or inputs.run is not None:
        return streamed(inputs, state)

    def values(inputs: scans.Inputs, state: Array) -> scans.Result:
        length = inputs.x.shape[1]
        size = chunk_of(chunk, length)
        x, side = _sided(inputs, size, reverse, before=False)
        pairs = (side.B.astype(jnp.float32) * side.C.astype(jnp.float32)).sum(-1)
        own = side.dt * jnp.repeat(pairs, x.shape[2] // pairs.shape[2], axis=2)
        y, last = one_way(x, side, own, state, size, reverse, interpret)
        return scans.Result(y[:, :length], last)

    return choice.recomputed(values, streamed)(inputs, state)


def mix(
    f: scans.Inputs,
    k: scans.Inputs,
    delta: Array,
    starts: mixing.Starts,
    chunk: int,
    interpret: bool,
) -> Array:
    """Returns what `quasiseparable` does, from its inputs with C of the neighbour."""
    streamed = functools.partial(mixing.FORMS["streamed"], chunk=chunk)
    if not choice.kernels_run(interpret) or f.run is not None:
        return streamed(f, k, delta, starts)

    def values(f: scans.Inputs, k: scans.Inputs, delta: Array, starts: mixing.Starts) -> Array:
        b, length, h, p = f.x.shape
        size = chunk_of(chunk, length)
        x, below = _sided(f, size, False, before=True)
        _, above = _sided(k, size, True, before=True)
        diagonal = jnp.pad(delta, ((0, 0), (0, x.shape[1] - length), (0, 0)))
        first, last = (start.reshape(b, h, p, -1) for start in starts)
        y = both_ways(x, below, above, diagonal, (first, last), size, interpret)
        return y[:, :length]

    return choice.recomputed(values, streamed)(f, k, delta, starts)


def _scanned(inputs: scans.Inputs, state: Array, chunk: int, reverse: bool) -> scans.Result:
    return scans.FORMS["scanned"](inputs, state, chunk, reverse)


def _sided(inputs: scans.Inputs, chunk: int, reverse: bool, before: bool) -> tuple[Array, Side]:
    """Returns x and what a kernel takes beside, filled up to whole chunks.

    before  a token reads the state as its neighbour left it
    """
    extra = -inputs.x.shape[1] % chunk
    x, dt, a, B, C = (
        jnp.pad(part, ((0, 0), (0, extra), *((0, 0),) * (part.ndim - 2))) for part in inputs[:5]
    )
    to = jax.lax.cumsum(a.reshape(len(a), -1, chunk, a.shape[2]), axis=2, reverse=reverse)
    read = to
    if before:
        inner = to[:, :, 1:] if reverse else to[:, :, :-1]
        read = jnp.pad(inner, ((0, 0), (0, 0), (0, 1) if reverse else (1, 0), (0, 0)))
    return x, Side(dt, to.reshape(a.shape), read.reshape(a.shape), B, C)
