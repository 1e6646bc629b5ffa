"""The scans of `ops.ssd` and `ops.quasiseparable` as Pallas kernels for a TPU.

A kernel walks the chunks of one example and one block of heads, in which the state stays in the
core's own memory: what passes through the device's memory is what goes in and what comes out.
Mixing from both ends takes two walks: one against the order of the tokens, which notes the state at
every border of chunks, and one along it, which reads both states and multiplies the chunk's matrix.

Below: b batch, k blocks of heads, c chunks, q tokens of a chunk, w channels of a block of heads, n
channels of the state, g groups. A state is [n, w] here, so that all heads of a block are one
product. Decays, their sums and states are float32, products in the type of x.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array

# A chunk is a multiple of the lanes of a TPU.
LANES = 128
# Bytes of a token in a block of heads: the more, the less often B and C are read, and the more of
# the core's memory is taken.
WIDEST = 4096


class Side(NamedTuple):
    """One direction of a scan.

    dt [b, l, h]; to and read [b, l, h], the sums over a chunk of the logarithms of the decays, up
    to and with a token, and up to the state that a token reads; B and C [b, l, g, n].
    """

    dt: Array
    to: Array
    read: Array
    B: Array
    C: Array


class Layout(NamedTuple):
    """How a sequence is cut: `heads` in a block, `blocks` of them, `chunks` of `chunk` tokens."""

    heads: int
    blocks: int
    chunk: int
    chunks: int
    channels: int
    state: int
    groups: int

    @property
    def width(self) -> int:
        """Channels of a block."""
        return self.heads * self.channels

    @property
    def apart(self) -> int:
        """Into how many arrays x is taken apart: blocks that fill lanes stay beside each other."""
        return 1 if self.width % LANES == 0 else self.blocks


def chunk_of(chunk: int, length: int) -> int:
    """Returns the tokens of a chunk: whole lanes, and no more than the sequence has."""
    return LANES * max(1, min(-(-chunk // LANES), -(-length // LANES)))


def layout(x: Array, side: Side, chunk: int) -> Layout:
    """Returns how `x`, [b, l, h, p], whose length `chunk` divides, is cut."""
    (_, length, h, p), (groups, state) = x.shape, side.B.shape[2:]
    share, size = h // groups, p * x.dtype.itemsize
    heads = max(n for n in range(1, share + 1) if share % n == 0 and n * size <= max(WIDEST, size))
    return Layout(heads, h // heads, chunk, length // chunk, p, state, groups)


def one_way(
    x: Array, side: Side, diagonal: Array, start: Array, chunk: int, reverse: bool, interpret: bool
) -> tuple[Array, Array]:
    """Returns the product with a triangle and a diagonal, as x, and the last state, as `start`.

    x: [b, l, h, p], diagonal: [b, l, h], start: [b, h, p, n]; `chunk`, see `chunk_of`, divides l.
    """
    cut = layout(x, side, chunk)
    y, state = _emit(x, [side], diagonal, _packed(start, cut), None, cut, reverse, interpret)
    return y, _unpacked(state, cut)


def both_ways(
    x: Array,
    forward: Side,
    backward: Side,
    diagonal: Array,
    starts: tuple[Array, Array],
    chunk: int,
    interpret: bool,
) -> Array:
    """Returns the product with two triangles and a diagonal, as x; arguments as in `one_way`."""
    cut = layout(x, forward, chunk)
    first, last = (_packed(start, cut) for start in starts)
    borders = _borders(x, backward, last, cut, True, interpret)
    sides = [forward, backward]
    return _emit(x, sides, diagonal, first, borders, cut, False, interpret)[0]


def _borders(
    x: Array, side: Side, start: Array, cut: Layout, reverse: bool, interpret: bool
) -> Array:
    """Returns the states that arrive at the chunks, [b, k, c, n, w]."""
    b = len(x)
    at = functools.partial(_specs, cut, reverse)

    def kernel(x: Any, rows: Any, start: Any, B: Any, borders: Any, state: Any) -> None:
        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            state[...] = start[0, 0]

        # As it is read: products are in the type of x.
        borders[0, 0, 0] = state[...].astype(borders.dtype)
        columns = rows[0, 0].T
        _advance(state, x[0, 0], columns, B[0, 0], cut, reverse)

    return pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((b, cut.blocks, cut.chunks, *start.shape[2:]), x.dtype),
        grid=(b, cut.blocks, cut.chunks),
        in_specs=[at("x"), at("rows", 2), at("state"), at("pairs")],
        out_specs=at("borders"),
        scratch_shapes=[pltpu.VMEM(start.shape[2:], jnp.float32)],
        compiler_params=_PARALLEL,
        cost_estimate=_cost(b, cut, x.dtype.itemsize, 1, 0),
        name="scan_borders",
        interpret=interpret,
    )(_wide(x, cut), _rows([side.dt, side.to], cut), start, _pairs(side.B))


def _emit(
    x: Array,
    sides: Sequence[Side],
    diagonal: Array,
    start: Array,
    borders: Array | None,
    cut: Layout,
    reverse: bool,
    interpret: bool,
) -> tuple[Array, Array]:
    """Walks with the first side's state and reads the second's from `borders`."""
    b, count = len(x), len(sides)
    at = functools.partial(_specs, cut, reverse)
    vectors = [part for side in sides for part in (side.dt, side.to, side.read)]

    def kernel(x: Any, rows: Any, start: Any, *rest: Any) -> None:
        pairs, (y, final, state) = rest[: 2 * count], rest[-3:]

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            state[...] = start[0, 0]

        states = [state[...], *(ref[0, 0, 0] for ref in rest[2 * count : -3])]
        values = [ref[0, 0] for ref in pairs]
        lines = rows[0, 0]
        columns = lines.T
        read = [_dot(C, s.astype(C.dtype)) for C, s in zip(values[1::2], states, strict=True)]
        products = [_dot(C, B, (1, 1)) for B, C in zip(values[::2], values[1::2], strict=True)]
        for head in range(cut.heads):
            where = slice(head * cut.channels, (head + 1) * cut.channels)
            part = x[0, 0, :, where]
            weights = _weights(lines, columns, products, head, cut, reverse)
            found = _dot(weights.astype(part.dtype), part)
            for place, more in enumerate(read):
                decay = jnp.exp(_column(columns, 3 * place + 2, head, cut))
                found += decay * more[:, where]
            y[0, 0, :, where] = found.astype(y.dtype)
        _advance(state, x[0, 0], columns, values[0], cut, reverse)

        @pl.when(pl.program_id(2) == cut.chunks - 1)
        def _() -> None:
            final[0, 0] = state[...]

    wide = _wide(x, cut)
    extra = [] if borders is None else [borders]
    y, state = pl.pallas_call(
        kernel,
        (jax.ShapeDtypeStruct(wide.shape, x.dtype), jax.ShapeDtypeStruct(start.shape, jnp.float32)),
        grid=(b, cut.blocks, cut.chunks),
        in_specs=[
            at("x"),
            at("rows", 3 * count + 1),
            at("state"),
            *(at("pairs") for _ in range(2 * count)),
            *(at("borders") for _ in extra),
        ],
        out_specs=(at("x"), at("state")),
        scratch_shapes=[pltpu.VMEM(start.shape[2:], jnp.float32)],
        compiler_params=_PARALLEL,
        cost_estimate=_cost(b, cut, x.dtype.itemsize, 1 + count, count),
        name="scan_walk",
        interpret=interpret,
    )(
        wide,
        _rows([*vectors, diagonal], cut),
        start,
        *(_pairs(part) for side in sides for part in (side.B, side.C)),
        *extra,
    )
    return _narrow(y, cut), state


def _weights(
    lines: Array, columns: Array, products: list[Array], head: int, cut: Layout, reverse: bool
) -> Array:
    """Returns a head's matrix of a chunk, float32 [q, q]."""
    shape = (cut.chunk, cut.chunk)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    inside = row < column if reverse else row > column

    def side(place: int) -> tuple[Array, Array]:
        exponent = _column(columns, 3 * place + 2, head, cut) - _line(
            lines, 3 * place + 1, head, cut
        )
        return exponent, products[place] * _line(lines, 3 * place, head, cut)

    exponent, pairs = side(0)
    if len(products) == 2:
        others = side(1)
        exponent = jnp.where(inside, exponent, others[0])
        pairs = jnp.where(inside, pairs, others[1])
    found = pairs * jnp.exp(jnp.minimum(exponent, 0.0))
    if len(products) == 1:
        found = jnp.where(inside, found, 0.0)
    return jnp.where(row == column, _line(lines, 3 * len(products), head, cut), found)


def _advance(state: Any, x: Array, columns: Array, B: Array, cut: Layout, reverse: bool) -> None:
    """Takes a state over a chunk; of `columns` the first are dt and the sums."""
    end = 0 if reverse else cut.chunk - 1
    parts, decays = [], []
    for head in range(cut.heads):
        to = _column(columns, 1, head, cut)
        total = to[end : end + 1]
        weight = _column(columns, 0, head, cut) * jnp.exp(jnp.minimum(total - to, 0.0))
        part = x[:, head * cut.channels : (head + 1) * cut.channels]
        parts.append((part.astype(jnp.float32) * weight).astype(x.dtype))
        decays.append(jnp.broadcast_to(jnp.exp(total), (1, cut.channels)))
    weighted, decay = jnp.concatenate(parts, axis=1), jnp.concatenate(decays, axis=1)
    state[...] = decay * state[...] + _dot(B, weighted, (0, 0))


def _line(lines: Array, place: int, head: int, cut: Layout) -> Array:
    at = place * cut.heads + head
    return lines[at : at + 1]


def _column(columns: Array, place: int, head: int, cut: Layout) -> Array:
    at = place * cut.heads + head
    return columns[:, at : at + 1]


def _dot(left: Array, right: Array, axes: tuple[int, int] = (1, 0)) -> Array:
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)


_PARALLEL = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def _specs(cut: Layout, reverse: bool, what: str, count: int = 0) -> pl.BlockSpec:
    """Returns which part of an array a step of the grid sees."""
    share = cut.blocks // cut.groups
    beside = cut.blocks // cut.apart

    def place(c: Any) -> Any:
        return cut.chunks - 1 - c if reverse else c

    blocks: dict[str, tuple[tuple[int, ...], Any]] = {
        "x": (
            (1, 1, cut.chunk, cut.width),
            lambda b, k, c: (b, k // beside, place(c), k % beside),
        ),
        "rows": ((1, 1, count * cut.heads, cut.chunk), lambda b, k, c: (b, k, 0, place(c))),
        "state": ((1, 1, cut.state, cut.width), lambda b, k, c: (b, k, 0, 0)),
        "pairs": ((1, 1, cut.chunk, cut.state), lambda b, k, c: (b, k // share, place(c), 0)),
        "borders": ((1, 1, 1, cut.state, cut.width), lambda b, k, c: (b, k, place(c), 0, 0)),
    }
    return pl.BlockSpec(*blocks[what])


def _cost(b: int, cut: Layout, size: int, moved: int, sides: int) -> pl.CostEstimate:
    """What XLA is told, to place other work around it; the kernel reads or writes x `moved` times
    and multiplies the matrices of `sides`.
    """
    tokens, width = b * cut.chunks * cut.chunk, cut.width
    each = sides * (cut.chunk * cut.state + cut.state * width) + cut.state * width
    each += bool(sides) * cut.chunk * width
    pairs = max(2 * sides, 1) * cut.state
    borders = size * cut.state * width // cut.chunk * (sides != 1)
    return pl.CostEstimate(
        flops=2 * tokens * cut.blocks * each,
        transcendentals=tokens * cut.blocks * cut.heads * (bool(sides) * cut.chunk + sides + 1),
        bytes_accessed=tokens
        * cut.blocks
        * (size * (moved * width + pairs) + 4 * cut.heads * (3 * sides + 2) + borders),
    )


def _wide(x: Array, cut: Layout) -> Array:
    """Returns [b, parts, l, channels of a part] of [b, l, h, p]."""
    b, length = x.shape[:2]
    return x.reshape(b, length, cut.apart, -1).swapaxes(1, 2)


def _narrow(y: Array, cut: Layout) -> Array:
    b, _, length, _ = y.shape
    return y.swapaxes(1, 2).reshape(b, length, -1, cut.channels)


def _rows(vectors: Sequence[Array], cut: Layout) -> Array:
    """Returns [b, k, vectors * heads of a block, l] of vectors [b, l, h]."""
    b, length, _ = vectors[0].shape
    stacked = jnp.stack(vectors, axis=1).reshape(b, len(vectors), length, cut.blocks, cut.heads)
    return stacked.transpose(0, 3, 1, 4, 2).reshape(b, cut.blocks, -1, length)


def _pairs(part: Array) -> Array:
    """Returns [b, g, l, n] of B or C, [b, l, g, n]."""
    return part.swapaxes(1, 2)


def _packed(state: Array, cut: Layout) -> Array:
    """Returns [b, k, n, w] of [b, h, p, n]."""
    b, _, _, n = state.shape
    return state.reshape(b, cut.blocks, -1, n).swapaxes(2, 3)


def _unpacked(state: Array, cut: Layout) -> Array:
    b, _, n, _ = state.shape
    return state.swapaxes(2, 3).reshape(b, -1, cut.channels, n)
