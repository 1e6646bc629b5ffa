"""Values named within a function, and which of them were not finite when it ran.

A name costs nothing: it is an identity that leaves no operation in a compiled program. Only
`not_finite` looks for names, in a program of its own, wherever they are: under gradients, in
layers that are scanned, in branches, in parts that are computed again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bigr_jax.train import patterns

Array = jax.Array

# Kinds of what layers hand on.
FLOW = ("input", "output")
_MARK = "bigr tap:"
# Equations that run a body once, or once per iteration, or one of several.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
_BODIES = frozenset((*_CALLS, "scan", "cond"))


class Found(NamedTuple):
    """A value that was not finite: what was said of it, and the iterations of its scans."""

    kind: str
    path: str
    at: tuple[int, ...]


class _Tap(NamedTuple):
    kind: str
    path: str
    # Numbers of the equations that lead to it, of each the length if it is a scan, else 0.
    places: tuple[tuple[int, int], ...]


def tap(tree: Any, kind: str, path: str | None = None) -> Any:
    """Returns a tree whose arrays of floats are named.

    path  of all of them; None: each has its own in the tree
    """

    def named(keys: Any, leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, np.ndarray)) or not _is_float(leaf):
            return leaf
        where = patterns.path_of(keys) if path is None else path
        return checkpoint_name(leaf, f"{_MARK}{kind}:{where}")

    return jax.tree_util.tree_map_with_path(named, tree)


def not_finite(function: Callable[..., Any], *args: Any, where: Any = None) -> list[Found]:
    """Runs a function and returns its named values that are not finite, in order of computation.

    where  sharding of what the run reports, for a program over several devices
    """
    # A new function, or a trace from before the names were given might be used again.
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    taps = list(_taps(closed.jaxpr))
    program = jax.jit(
        lambda leaves: _run(closed.jaxpr, closed.consts, leaves)[1], out_shardings=where
    )
    flags = jax.device_get(program(jax.tree.leaves(args)))
    found = [entry for tap, bad in zip(taps, flags, strict=True) for entry in _entries(tap, bad)]
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def _entries(tap: _Tap, flags: np.ndarray) -> Iterator[tuple[tuple[int, ...], Found]]:
    for index in np.argwhere(flags):
        at = iter(map(int, index))
        order = [(number, next(at) if length else 0) for number, length in tap.places]
        yield sum(order, ()), Found(tap.kind, tap.path, tuple(map(int, index)))


def _taps(jaxpr: Any, places: tuple[tuple[int, int], ...] = ()) -> Iterator[_Tap]:
    for number, equation in enumerate(jaxpr.eqns):
        if name := _name(equation):
            kind, _, path = name.partition(":")
            yield _Tap(kind, path, (*places, (number, 0)))
            continue
        length = equation.params["length"] if equation.primitive.name == "scan" else 0
        for body, _ in _bodies(equation):
            yield from _taps(body, (*places, (number, length)))


def _run(jaxpr: Any, consts: Any, args: Any) -> tuple[list[Any], list[Array]]:
    """Returns what a jaxpr gives, and whether each named value is bad, in the order of `_taps`."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    flags: list[Array] = []
    for equation in jaxpr.eqns:
        inputs = [v.val if hasattr(v, "val") else values[v] for v in equation.invars]
        with equation.ctx.manager:
            outputs, found = _equation(equation, inputs)
        flags += found
        values.update(zip(equation.outvars, outputs, strict=True))
    return [v.val if hasattr(v, "val") else values[v] for v in jaxpr.outvars], flags


def _equation(equation: Any, inputs: list[Any]) -> tuple[list[Any], list[Array]]:
    primitive, bodies = equation.primitive, _bodies(equation)
    if any(True for body, _ in bodies for _ in _taps(body)):
        if primitive.name == "cond":
            return _switch(bodies, inputs)
        run = _scan if primitive.name == "scan" else _run_call
        return run(bodies[0], equation.params, inputs)
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
    outputs = outputs if primitive.multiple_results else [outputs]
    return outputs, [_is_bad(_name(equation), outputs[0])] if _name(equation) else []


def _run_call(inner: Any, params: Any, inputs: list[Any]) -> tuple[list[Any], list[Array]]:
    return _run(inner[0], inner[1], inputs)


def _scan(inner: Any, params: Any, inputs: list[Any]) -> tuple[list[Any], list[Array]]:
    if "ft_in" in params:  # jax 0.12
        fixed, carried = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    else:
        fixed, carried = params["num_consts"], params["num_carry"]
    constants, rest = inputs[:fixed], inputs[fixed:]
    carry, xs = rest[:carried], rest[carried:]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Array]]]:
        outputs, flags = _run(inner[0], inner[1], [*constants, *carry, *x])
        return outputs[:carried], (outputs[carried:], flags)

    carry, (ys, flags) = jax.lax.scan(body, carry, xs, length=params["length"])
    return [*carry, *ys], flags


def _switch(bodies: Sequence[Any], inputs: list[Any]) -> tuple[list[Any], list[Array]]:
    # What a branch that is not taken names is not bad.
    unseen = [[jnp.zeros(_lengths(tap), bool) for tap in _taps(body)] for body, _ in bodies]

    def branch(number: int, *operands: Any) -> tuple[list[Any], list[list[Array]]]:
        body, consts = bodies[number]
        outputs, flags = _run(body, consts, operands)
        return outputs, [*unseen[:number], flags, *unseen[number + 1 :]]

    branches = [functools.partial(branch, number) for number in range(len(bodies))]
    outputs, flags = jax.lax.switch(inputs[0], branches, *inputs[1:])
    return outputs, list(itertools.chain(*flags))


def _lengths(tap: _Tap) -> tuple[int, ...]:
    return tuple(length for _, length in tap.places if length)


def _bodies(equation: Any) -> list[tuple[Any, Any]]:
    """Returns the jaxprs and constants of an equation whose names can be looked for."""
    name, params = equation.primitive.name, equation.params
    # What is computed again for a gradient has been looked at when it was computed first.
    if params.get("differentiated") or params.get("reverse") or name not in _BODIES:
        return []
    one = params.get("call_jaxpr", params.get("jaxpr"))
    found = params["branches"] if name == "cond" else [one]
    return [(getattr(body, "jaxpr", body), getattr(body, "consts", ())) for body in found]


def _name(equation: Any) -> str:
    name = equation.params.get("name", "") if equation.primitive.name == "name" else ""
    return name.removeprefix(_MARK) if name.startswith(_MARK) else ""


def _is_bad(name: str, x: Array) -> Array:
    # Between layers -inf is no fault: it masks what must not be attended to.
    if name.startswith(FLOW):
        return jnp.any(jnp.isnan(x) | (x == math.inf))
    return ~jnp.isfinite(x).all()


def _is_float(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, np.inexact))
