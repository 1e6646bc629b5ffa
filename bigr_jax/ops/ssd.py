"""The selective state-space scan with one decay per head, in forms with one signature.

For every head, with a state S of [P, N] and an input x_t of P channels,

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t

Source: Mamba-2 (arXiv 2405.21060), section 3 for the recurrence and section 6 for the chunked form.
Below: b batch, l length, h heads, p channels of a head, g groups of heads that share B and C, n
channels of the state; head k is of group k // (h / g).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigr_jax.ops import scan_choice as choice

Array = jax.Array


class Result(NamedTuple):
    """What a scan gives.

    y      as x, [b, l, h, p]
    state  after the last token that the scan comes to, float32 [b, h, p, n]
    """

    y: Array
    state: Array


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    form: str = "auto",
    chunk: int | None = None,
    initial_state: Array | None = None,
    segment_ids: Array | None = None,
    reverse: bool = False,
    interpret: bool = False,
) -> Result:
    """Scans a sequence.

    x: [b, l, h, p], dt: [b, l, h], positive, 0 where a token is to leave no trace, A: [h],
    negative, B and C: [b, l, g, n]
    form           of FORMS, which all give the same values and gradients; "pallas", a kernel for
                   a TPU, see `kernels.forms`; or "auto", the fastest, see `scan_choice`
    chunk          tokens that are multiplied at once, of any length; None: as the form likes it
    initial_state  [b, h, p, n], zeros where None
    segment_ids    int [b, l]: where the number changes the state starts anew at zero
    reverse        from the last token to the first
    interpret      "pallas" runs anywhere, slowly

    Decays, their sums and the state are float32, the products of x, B and C in the type of x with
    float32 accumulation. Raises ValueError for another form and for shapes that do not fit.
    """
    choice.check(form, FORMS, chunk)
    state = start(x, A, {"": (dt, B, C)}, initial_state)
    b, length = x.shape[:2]
    inputs = Inputs(
        x, dt.astype(jnp.float32), dt.astype(jnp.float32) * A, B, C, runs(segment_ids, b, length)
    )
    forms: dict[str, Callable[..., Result]] = {
        name: functools.partial(_in_order, run, reverse) for name, run in FORMS.items()
    }
    forms[choice.PALLAS] = functools.partial(_kernel, reverse=reverse, interpret=interpret)
    return choice.resolved("ssd", forms, form, length, chunk)(inputs, state)


def start(
    x: Array, A: Array, sides: Mapping[str, tuple[Array, Array, Array]], state: Array | None
) -> Array:
    """Returns the state in which scans of `x` begin, float32 [b, h, p, n].

    sides  {what the names of a scan's own arguments begin with: its dt, B and C}
    Raises ValueError, which names the argument, for shapes that do not fit.
    """
    b, length, h, p = x.shape
    g, n = next(iter(sides.values()))[1].shape[-2:]
    rows, pairs = (b, length, h), (b, length, g, n)
    wanted: dict[str, tuple[Array, tuple[int, ...]]] = {"A": (A, (h,))}
    for side, arrays in sides.items():
        names = (f"{side}dt", f"{side}B", f"{side}C")
        wanted |= dict(zip(names, zip(arrays, (rows, pairs, pairs), strict=True), strict=True))
    if state is not None:
        wanted["initial_state"] = (state, (b, h, p, n))
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"{name} has the shape {array.shape}, expected {shape}")
    if h % g:
        raise ValueError(f"{h} heads do not divide into {g} groups")
    return jnp.zeros((b, h, p, n)) if state is None else state.astype(jnp.float32)


class Inputs(NamedTuple):
    """The arguments of a scan: `a` [b, l, h] is the logarithm of the decay, `run` int [b, l] the
    number of the segment, None where there is but one.
    """

    x: Array
    dt: Array
    a: Array
    B: Array
    C: Array
    run: Array | None


def _in_order(run: Any, reverse: bool, inputs: Inputs, state: Array, chunk: int) -> Result:
    return run(inputs, state, chunk, reverse)


def _kernel(inputs: Inputs, state: Array, chunk: int, *, reverse: bool, interpret: bool) -> Result:
    # Few need Pallas, which takes long to import.
    from bigr_jax.ops.kernels import forms

    return forms.scan(inputs, state, chunk, reverse, interpret)


class Chunk(NamedTuple):
    """The same for one chunk of q tokens, or with a leading axis for all of them, head-major.

    x [b, g, r, q, p], dt and a [b, g, r, q], B and C [b, g, q, n], run [b, q]; r heads in a group.
    """

    x: Array
    dt: Array
    a: Array
    B: Array
    C: Array
    run: Array


def runs(segment_ids: Array | None, batch: int, length: int) -> Array | None:
    """Returns int [batch, length], one more at every change of `segment_ids`."""
    if segment_ids is None:
        return None
    if segment_ids.shape != (batch, length):
        raise ValueError(f"segment_ids has the shape {segment_ids.shape}, not {(batch, length)}")
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.cumsum(jnp.pad(changes, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)


def split(inputs: Inputs, chunk: int) -> Chunk:
    """Returns the chunks, [chunks, ...]; the last is filled up with tokens that leave no trace."""
    b, length, h = inputs.x.shape[:3]
    g = inputs.B.shape[2]
    chunk = min(chunk, max(length, 1))
    extra = -length % chunk

    def parts(array: Array, *axes: int) -> Array:
        # [b, l, ...] -> [chunks, b, axes ..., chunk, rest ...]
        wide = ((0, 0), (0, extra)) + ((0, 0),) * (array.ndim - 2)
        padded = jnp.pad(array, wide)
        rest = array.shape[2 + bool(axes) :] if axes else array.shape[2:]
        cut = padded.reshape(b, -1, chunk, *axes, *rest)
        order = (1, 0, *range(3, 3 + len(axes)), 2, *range(3 + len(axes), cut.ndim))
        return cut.transpose(order)

    heads = (g, h // g)
    run = jnp.zeros((b, length), jnp.int32) if inputs.run is None else inputs.run
    # A token of the padding belongs to the run before it, so that the state lives on.
    run = jnp.pad(run, ((0, 0), (0, extra)), mode="edge").reshape(b, -1, chunk).swapaxes(0, 1)
    return Chunk(
        parts(inputs.x, *heads),
        parts(inputs.dt, *heads),
        parts(inputs.a, *heads),
        parts(inputs.B, g),
        parts(inputs.C, g),
        run,
    )


def joined(y: Array, length: int) -> Array:
    """Returns [b, length, h, p] from chunks [chunks, b, g, r, q, p]."""
    count, b, g, r, q, p = y.shape
    return y.transpose(1, 0, 4, 2, 3, 5).reshape(b, count * q, g * r, p)[:, :length]


def _sequential(inputs: Inputs, state: Array, chunk: int, reverse: bool) -> Result:
    del chunk
    y, state = walked(inputs, state, reverse)
    return Result(y.astype(inputs.x.dtype), state)


def walked(inputs: Inputs, state: Array, reverse: bool) -> Result:
    """Scans token by token; y is float32."""
    repeats = inputs.x.shape[2] // inputs.B.shape[2]
    starts = fresh(inputs, reverse)

    def step(state: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, a, B, C, new = token
        B, C = (jnp.repeat(v.astype(jnp.float32), repeats, axis=1) for v in (B, C))
        state = jnp.where(new[:, None, None, None], 0.0, state) * jnp.exp(a)[..., None, None]
        state = state + (dt[..., None] * x.astype(jnp.float32))[..., None] * B[:, :, None, :]
        return state, jnp.einsum("bhpn,bhn->bhp", state, C)

    rows = (inputs.x, inputs.dt, inputs.a, inputs.B, inputs.C, starts)
    tokens = tuple(jnp.moveaxis(row, 1, 0) for row in rows)
    state, y = jax.lax.scan(step, state, tokens, reverse=reverse)
    return Result(jnp.moveaxis(y, 0, 1), state)


def _associative(inputs: Inputs, state: Array, chunk: int, reverse: bool) -> Result:
    del chunk
    repeats = inputs.x.shape[2] // inputs.B.shape[2]
    B, C = (jnp.repeat(v.astype(jnp.float32), repeats, axis=2) for v in (inputs.B, inputs.C))
    new = fresh(inputs, reverse)
    decay = jnp.where(new[..., None], 0.0, jnp.exp(inputs.a))
    added = (inputs.dt[..., None] * inputs.x.astype(jnp.float32))[..., None] * B[..., None, :]
    # The state before the first token is one more step.
    where = -1 if reverse else 0
    first = jnp.moveaxis(added, 1, 0).at[where].add(decay[:, where, :, None, None] * state)

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], left[1] * right[0][..., None, None] + right[1]

    steps = (jnp.moveaxis(decay, 1, 0), first)
    _, states = jax.lax.associative_scan(join, steps, reverse=reverse)
    y = jnp.einsum("lbhpn,blhn->blhp", states, C)
    return Result(y.astype(inputs.x.dtype), states[0 if reverse else -1])


def _chunked(inputs: Inputs, state: Array, chunk: int, reverse: bool) -> Result:
    parts = split(inputs, chunk)
    cs = sums(parts.a, reverse)
    within = jax.vmap(lambda c, s: _within(c, s, reverse))(parts, cs)
    added = jax.vmap(lambda c, s: added_state(c, s, reverse))(parts, cs)
    before, state = carried(added, total(parts.a), parts.run, _grouped(state, parts), reverse)
    across = jax.vmap(read)(parts.C, cs, opened(parts.run, reverse), before)
    y = joined((within + across).astype(inputs.x.dtype), inputs.x.shape[1])
    return Result(y, _ungrouped(state))


def _scanned(inputs: Inputs, state: Array, chunk: int, reverse: bool) -> Result:
    parts = split(inputs, chunk)

    # What a chunk multiplies is made again in the backward pass: it stays in the cache.
    @jax.checkpoint
    def step(state: Array, item: tuple[Chunk, Array, Array]) -> tuple[Array, Array]:
        part, open_rows, kept = item
        cs = sums(part.a, reverse)
        y = _within(part, cs, reverse) + read(part.C, cs, open_rows, state)
        decay = jnp.where(kept[:, None, None], jnp.exp(total(part.a)), 0.0)
        state = decay[..., None, None] * state + added_state(part, cs, reverse)
        return state, y.astype(inputs.x.dtype)

    items = (parts, opened(parts.run, reverse), unbroken(parts.run, reverse))
    state, y = jax.lax.scan(step, _grouped(state, parts), items, reverse=reverse)
    return Result(joined(y, inputs.x.shape[1]), _ungrouped(state))


FORMS: dict[str, Callable[[Inputs, Array, int, bool], Result]] = {
    "sequential": _sequential,
    "associative": _associative,
    "chunked": _chunked,
    "scanned": _scanned,
}


def sums(a: Array, reverse: bool = False) -> Array:
    """Returns the sums of the logarithms of the decays, [..., q], over the tokens up to and with
    each, or from each on.
    """
    return jax.lax.cumsum(a, axis=a.ndim - 1, reverse=reverse)


def total(a: Array) -> Array:
    """Returns the sum over a chunk."""
    return a.sum(axis=-1)


def opened(run: Array, reverse: bool) -> Array:
    """Returns bool, as run [chunks, b, q]: the tokens that belong to the run at which the chunk
    before ended. Before the first chunk every run is the first token's own.
    """
    edges = run[:, :, 0] if reverse else run[:, :, -1]
    first = run[-1:, :, -1] if reverse else run[:1, :, 0]
    before = jnp.concatenate([edges[1:], first] if reverse else [first, edges[:-1]])
    return run == before[..., None]


def unbroken(run: Array, reverse: bool) -> Array:
    """Returns bool [chunks, b]: the state before a chunk lives on to its end."""
    return opened(run, reverse).all(axis=-1)


def added_state(part: Chunk, cs: Array, reverse: bool) -> Array:
    """Returns what the tokens of a chunk add to the state at its end, float32 [b, g, r, p, n]."""
    end = 0 if reverse else -1
    to_end = jnp.exp(jnp.minimum(cs[..., end, None] - cs, 0.0))
    same = part.run == part.run[:, end, None]
    weight = jnp.where(same[:, None, None], part.dt * to_end, 0.0)
    weighted = (part.x * weight[..., None]).astype(part.x.dtype)
    return jnp.einsum("bgrqp,bgqn->bgrpn", weighted, part.B, preferred_element_type=jnp.float32)


def carried(
    added: Array, decays: Array, run: Array, state: Array, reverse: bool
) -> tuple[Array, Array]:
    """Returns the states before the chunks, [chunks, b, g, r, p, n], and the one after all."""

    def step(state: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        more, decay = item
        return decay[..., None, None] * state + more, state

    decay = jnp.where(unbroken(run, reverse)[:, :, None, None], jnp.exp(decays), 0.0)
    state, before = jax.lax.scan(step, state, (added, decay), reverse=reverse)
    return before, state


def read(C: Array, cs: Array, open_rows: Array, state: Array) -> Array:
    """Returns what the tokens of a chunk read from the state before it, float32 [b, g, r, q, p].

    C: [b, g, q, n], cs: [b, g, r, q], the sums of the decays up to the state that is read,
    open_rows: bool [b, q], state: [b, g, r, p, n]
    """
    y = jnp.einsum(
        "bgqn,bgrpn->bgrqp", C, state.astype(C.dtype), preferred_element_type=jnp.float32
    )
    weight = jnp.where(open_rows[:, None, None], jnp.exp(cs), 0.0)
    return y * weight[..., None]


def products(C: Array, B: Array) -> Array:
    """Returns C_i B_j^T of a chunk, float32 [b, g, 1, q, q], once for the heads of a group."""
    return jnp.einsum("bgin,bgjn->bgij", C, B, preferred_element_type=jnp.float32)[:, :, None]


def _within(part: Chunk, cs: Array, reverse: bool) -> Array:
    q = part.run.shape[-1]
    rows, columns = jnp.arange(q)[:, None], jnp.arange(q)[None, :]
    seen = rows <= columns if reverse else rows >= columns
    seen = seen & (part.run[:, :, None] == part.run[:, None, :])
    # The exponent is masked, not the result: exp of a large one times 0 has no gradient.
    exponent = jnp.where(seen[:, None, None], cs[..., :, None] - cs[..., None, :], -jnp.inf)
    weights = products(part.C, part.B) * jnp.exp(jnp.minimum(exponent, 0.0)) * part.dt[..., None, :]
    return jnp.einsum(
        "bgrij,bgrjp->bgrip",
        weights.astype(part.x.dtype),
        part.x,
        preferred_element_type=jnp.float32,
    )


def fresh(inputs: Inputs, reverse: bool) -> Array:
    """Returns bool [b, l]: the tokens at which the state starts anew."""
    if inputs.run is None:
        return jnp.zeros(inputs.x.shape[:2], bool)
    changes = inputs.run[:, 1:] != inputs.run[:, :-1]
    return jnp.pad(changes, ((0, 0), (0, 1) if reverse else (1, 0)))


def _grouped(state: Array, parts: Chunk) -> Array:
    b, h, p, n = state.shape
    g = parts.B.shape[2]
    return state.reshape(b, g, h // g, p, n)


def _ungrouped(state: Array) -> Array:
    b, g, r, p, n = state.shape
    return state.reshape(b, g * r, p, n)
