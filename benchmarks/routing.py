"""What attention to routed regions costs: all its forms on a CPU, and dense attention.

    python benchmarks/routing.py [--quick] [--maps=56:7:4,112:7:4,112:14:4] [--repeats=5]
                                 [--seconds=20]

A map of `side` x `side` tokens is cut into S x S regions, each of which attends to k of them
(side:S:k): one example, 2 heads of 32 channels, float32. What is timed is all that a layer does
beside its projections: the map is cut, routed, attended and put together. Dense attention is that
of every token to every token: of JAX, and of `ops.attention`, which calls it. It takes its turns
with the first map of a size alone; others of that size have its figures. It multiplies S^2 / k
times as much, and is slower by more than that, for it writes all logits to memory and reads them
again: a dense attention made for caches would be nearer.

A call is compiled beforehand and timed by the processor time of this process, which runs on one
core and so in one thread. Candidates take turns; the least of the turns is reported, as is the
memory that the compiler sets aside for temporaries. The exit status is 1 where a claim does not
hold.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Before JAX starts as many threads as it finds cores.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved, positive, repeated, table

from bigr_jax.ops.attention import softmax_attention
from bigr_jax.ops.routing import bilevel_attention

HEADS, CHANNELS = 2, 32
PASSES = ("forward", "forward + backward")
DENSE = ("dense of JAX", "dense")
FORMS = ("gather", "walk", "auto")
VERDICTS = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}


class Map(NamedTuple):
    """A map of side x side tokens in regions x regions, each routed to topk."""

    side: int
    regions: int
    topk: int

    def __str__(self) -> str:
        return f"{self.side} x {self.side}, S={self.regions}, k={self.topk}"


class Cost(NamedTuple):
    """Seconds of one core, and bytes of temporaries, of one call."""

    seconds: float
    memory: int


DEFAULT = (Map(56, 7, 4), Map(112, 7, 4), Map(112, 14, 4))
QUICK = (Map(14, 7, 4),)

# (map, pass) -> name -> cost.
Table = dict[tuple[Map, str], dict[str, Cost]]
# What is claimed, with the figure, and whether it holds; None where it was not measured.
Claim = tuple[str, bool | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and what is claimed of it; returns the exit status."""
    given = arguments(argv)
    found: Table = {}
    for size in QUICK if given.quick else given.maps:
        check(size)
        for name in PASSES:
            repeats = 2 if given.quick else given.repeats
            known = next((c for (m, n), c in found.items() if (m.side, n) == (size.side, name)), {})
            dense = {form: known[form] for form in DENSE if form in known}
            names = [form for form in (*DENSE, *FORMS) if form not in dense]
            more = measured(size, names, name == PASSES[1], repeats, given.seconds)
            found[size, name] = dense | more
            print(f"{size}, {name}: {described(found[size, name])}", flush=True)
    print(f"\nMilliseconds on one core of {os.uname().machine}, load {os.getloadavg()[0]:.1f}\n")
    for name in PASSES:
        print(f"{name}\n\n{printed(found, name)}\n")
    lines = [*(against_dense(found, *gate) for gate in ((56, 1.5), (112, 6.0))), lean(found)]
    for line, holds in lines:
        print(f"{VERDICTS[holds]}: {line}")
    return int(any(holds is False for _, holds in lines))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small map, two turns")
    parser.add_argument("--maps", type=maps, default=DEFAULT, help="side:S:k, ...")
    parser.add_argument("--repeats", type=positive, default=5, help="turns at most; default 5")
    parser.add_argument(
        "--seconds", type=positive, default=20, help="a turn more than 1 begins within; default 20"
    )
    return parser.parse_args(argv)


def maps(text: str) -> tuple[Map, ...]:
    """Reads "56:7:4,112:7:4"; what is no list of maps is refused by argparse."""
    return tuple(Map(*(positive(number) for number in word.split(":"))) for word in text.split(","))


def check(size: Map) -> None:
    """Raises AssertionError where a form's output or gradients are not those of all pairs masked,
    on a map of as many regions, of at most 2 x 2 tokens each.
    """
    small = size._replace(side=min(size.side, 2 * size.regions))
    arrays = made(small)
    wanted = jax.jit(passes(small, "reference", True))(*arrays)
    for name in FORMS:
        actual = jax.jit(passes(small, name, True))(*arrays)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, wanted)


def measured(
    size: Map, names: Sequence[str], gradients: bool, repeats: int, seconds: float
) -> dict[str, Cost]:
    """Returns what the candidates cost on one map."""
    arrays = made(size)
    programs: dict[str, Any] = {
        name: jax.jit(passes(size, name, gradients)).lower(*arrays).compile() for name in names
    }
    calls = {name: repeated(program, *arrays) for name, program in programs.items()}
    first = interleaved(calls, 1)
    turns = seconds / sum(min(taken.cores) for taken in first.values())
    more = interleaved(calls, max(min(repeats, int(turns)) - 1, 0), warm=0)
    return {
        name: Cost(
            min(first[name].cores + more[name].cores),
            program.memory_analysis().temp_size_in_bytes,
        )
        for name, program in programs.items()
    }


def passes(size: Map, name: str, gradients: bool) -> Callable[..., Any]:
    """Returns the function of one candidate, with the gradients of all its inputs or without."""

    def mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        if name in DENSE:
            attend = softmax_attention if name == "dense" else jax.nn.dot_product_attention
            flat = (array.reshape(1, -1, HEADS, CHANNELS) for array in (query, key, value))
            return attend(*flat).reshape(query.shape)
        cut = (size.regions, size.regions)
        return bilevel_attention(query, key, value, regions=cut, topk=size.topk, form=name).mixed

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
        # Not a sum: its derivative would be a constant.
        y = mixed(query, key, value)
        return (y * query).sum(), y

    return jax.grad(loss, (0, 1, 2), has_aux=True) if gradients else mixed


def made(size: Map) -> tuple[jax.Array, ...]:
    """Returns query, key and value."""
    rng = np.random.default_rng(size.side)
    shape = (1, size.side, size.side, HEADS, CHANNELS)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))


def described(costs: Mapping[str, Cost]) -> str:
    """Returns one line."""
    return ", ".join(f"{name} {1e3 * cost.seconds:.1f}" for name, cost in costs.items())


def printed(found: Table, name: str) -> str:
    """Returns a table in Markdown: milliseconds, how many times those of "auto", and megabytes."""
    rows = []
    for (size, which), costs in found.items():
        if which == name:
            base = costs["auto"].seconds
            rows.append(
                [str(size), f"{size.regions**2 / size.topk:.1f}x"]
                + [
                    f"{1e3 * c.seconds:.1f}, {c.seconds / base:.2f}x, {c.memory / 1e6:.1f}"
                    for c in costs.values()
                ]
            )
    return table(["map", "fewer products", *DENSE, *FORMS], rows)


def against_dense(found: Table, side: int, least: float) -> Claim:
    """The chosen form, in both passes and on all maps of one size, against the faster dense one."""
    ratios = [
        min(costs[name].seconds for name in DENSE) / costs["auto"].seconds
        for (size, _), costs in found.items()
        if size.side == side
    ]
    if not ratios:
        return f"against dense attention at {side} x {side} tokens", None
    line = f"{min(ratios):.1f}x dense attention at {side} x {side} tokens, both passes"
    return f"{line} (at least {least:g}x)", min(ratios) >= least


def lean(found: Table) -> Claim:
    """Temporaries of the form that gathers nothing, over the whole table."""
    shares = [
        costs["walk"].memory / costs["gather"].memory
        for (size, _), costs in found.items()
        if size.side >= 56
    ]
    if not shares:
        return "memory of the walk against that of the gathered form", None
    line = f"walk takes {max(shares):.3f} of the memory of gather at worst"
    return f"{line} (at most 0.25)", max(shares) <= 0.25


if __name__ == "__main__":
    sys.exit(main())
