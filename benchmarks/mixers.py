"""What it costs to mix the tokens of a sequence: Hydra's matrix in all its forms, and attention.

    python benchmarks/mixers.py [--quick] [--lengths=64,...,4096] [--long=32768] [--repeats=7]
                                [--seconds=20] [--figure=mixers.png]

All forms compute the same matrix in both directions, from arrays of one shape: 8 heads of 64
channels, a state of 64, 2 examples, float32; attention has as many channels. A call is compiled
beforehand and timed by the processor time of this process, which runs on one core and so in one
thread: what else the machine does does not count, but for the caches that it takes. Candidates take
turns; the least of the turns is reported, as is the memory that the compiler sets aside for
temporaries. The exit status is 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Before JAX starts as many threads as it finds cores.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from timing import interleaved, positive, repeated, table

from bigr_jax.ops.quasiseparable import Direction, quasiseparable

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK = (64, 128, 256)
BATCH, HEADS, CHANNELS, STATE = 2, 8, 64, 64
PASSES = ("forward", "forward + backward")
# Name -> form and chunk; the time scan goes token by token.
FORMS: Mapping[str, tuple[str, int | None]] = {
    "time scan": ("sequential", 64),
    "official": ("official", 64),
    "fused": ("fused", 64),
    "streamed": ("streamed", 64),
    "streamed 32": ("streamed", 32),
    "auto": ("auto", None),
}
# Those that go on to `--long`: the others run out of memory or patience.
LASTING = ("streamed", "auto")


class Cost(NamedTuple):
    """Seconds of one core, and bytes of temporaries, of one call."""

    seconds: float
    memory: int


VERDICTS = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}

# (length, pass) -> name -> cost.
Table = dict[tuple[int, str], dict[str, Cost]]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and what is claimed of it; returns the exit status."""
    given = arguments(argv)
    lengths = QUICK if given.quick else given.lengths
    repeats = 2 if given.quick else given.repeats
    found: Table = {}
    for length in (*lengths, *([] if given.quick else [given.long])):
        names = list(LASTING) if length > max(lengths) else ["attention", *FORMS]
        found |= measured(length, names, repeats, given.seconds)
        for name in PASSES:
            print(f"{length} tokens, {name}: {described(found[length, name])}", flush=True)
    print(f"\nMilliseconds on one core of {os.uname().machine}, load {os.getloadavg()[0]:.1f}\n")
    for name in PASSES:
        print(f"{name}\n\n{printed(found, name)}\n")
    if given.figure:
        drawn(found, given.figure)
    lines = [claim(found) for claim in CLAIMS]
    for line, holds in lines:
        print(f"{VERDICTS[holds]}: {line}")
    return int(any(holds is False for _, holds in lines))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short sequences, two turns")
    parser.add_argument("--lengths", type=numbers, default=LENGTHS, help="default 64 to 4096")
    parser.add_argument("--long", type=positive, default=32768, help="default 32768")
    parser.add_argument("--repeats", type=positive, default=7, help="turns at most; default 7")
    parser.add_argument(
        "--seconds", type=positive, default=20, help="a turn more than 2 begins within; default 20"
    )
    parser.add_argument("--figure", default="", metavar="PNG", help="draws the table")
    return parser.parse_args(argv)


def numbers(text: str) -> tuple[int, ...]:
    """Reads "64,128"; what is no list of sizes is refused by argparse."""
    return tuple(positive(word) for word in text.split(","))


def measured(length: int, names: Sequence[str], repeats: int, seconds: float) -> Table:
    """Returns what the forms cost at one length."""
    found: Table = {}
    for name in PASSES:
        programs = {form: compiled(form, length, name == PASSES[1]) for form in names}
        arrays = {form: made(form, length) for form in names}
        calls = {form: repeated(programs[form], *arrays[form]) for form in names}
        first = interleaved(calls, 2)
        turns = seconds / sum(min(taken.cores) for taken in first.values())
        more = interleaved(calls, max(min(repeats, int(turns)) - 2, 0), warm=0)
        least = {form: min(first[form].cores + more[form].cores) for form in names}
        texts = {form: instructions(programs[form]) for form in names}
        found[length, name] = {
            form: Cost(
                # What compiles to the same program takes the same time.
                min(least[other] for other in names if texts[other] == texts[form]),
                programs[form].memory_analysis().temp_size_in_bytes,
            )
            for form in names
        }
    return found


def instructions(program: Any) -> str:
    """Returns a program without what it says of the lines that it was made from."""
    kept = [line for line in program.as_text().splitlines() if " = " in line]
    return re.sub(r", (metadata|backend_config)=\{.*", "", "\n".join(kept))


def compiled(form: str, length: int, gradients: bool) -> Any:
    """Returns the program of a form, with the gradients of all its inputs or without."""
    mixed = attention if form == "attention" else mixing(*FORMS[form])

    def loss(*arrays: Any) -> Any:
        # Not a sum: its derivative would be a constant.
        y = mixed(*arrays)
        return (y * arrays[0]).sum(), y

    arrays = jax.eval_shape(lambda: made(form, length))
    differentiated = jax.grad(loss, tuple(range(len(arrays))), has_aux=True)
    return jax.jit(differentiated if gradients else mixed).lower(*arrays).compile()


def mixing(form: str, chunk: int | None) -> Callable[..., jax.Array]:
    """Returns Hydra's matrix product in one form."""

    def run(x: Any, A: Any, forward: Any, backward: Any, delta: Any) -> jax.Array:
        return quasiseparable(x, A, forward, backward, delta, form=form, chunk=chunk)

    return run


def attention(query: Any, key: Any, value: Any) -> jax.Array:
    """Returns softmax attention of equal width, of every token to every token."""
    return jax.nn.dot_product_attention(query, key, value)


def made(form: str, length: int) -> tuple[Any, ...]:
    """Returns the inputs of a form."""
    rng = np.random.default_rng(length)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def direction() -> Direction:
        dt = jax.nn.softplus(normal(BATCH, length, HEADS) - 3)
        return Direction(dt, *(normal(BATCH, length, 1, STATE) for _ in "BC"))

    shape = BATCH, length, HEADS, CHANNELS
    if form == "attention":
        return normal(*shape), normal(*shape), normal(*shape)
    return normal(*shape), -jnp.ones(HEADS), direction(), direction(), normal(*shape[:3])


def described(costs: Mapping[str, Cost]) -> str:
    """Returns one line."""
    return ", ".join(f"{name} {1e3 * cost.seconds:.1f}" for name, cost in costs.items())


def printed(found: Table, name: str) -> str:
    """Returns a table in Markdown: milliseconds, how many times those of "auto", and megabytes."""
    rows = []
    for (length, which), costs in found.items():
        if which == name:
            row = [str(length)]
            for form in ("attention", *FORMS):
                cost = costs.get(form)
                ratio = cost and cost.seconds / costs["auto"].seconds
                text = cost and f"{1e3 * cost.seconds:.1f}, {ratio:.2f}x, {cost.memory / 1e6:.0f}"
                row.append(text or "")
            rows.append(row)
    return table(["tokens", *("attention", *FORMS)], rows)


def drawn(found: Table, path: str) -> None:
    """Draws microseconds per token over the length, and megabytes, both logarithmic."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for column, name in enumerate(PASSES):
        for form in ("attention", *FORMS):
            points = [
                (n, c[form]) for (n, which), c in found.items() if which == name and form in c
            ]
            lengths = [n for n, _ in points]
            times = [1e6 * cost.seconds / (BATCH * n) for n, cost in points]
            sizes = [cost.memory / 1e6 for _, cost in points]
            style = {"lw": 3, "color": "black", "ls": ":"} if form == "auto" else {"marker": "."}
            axes[0, column].loglog(lengths, times, label=form, **style)
            axes[1, column].loglog(lengths, sizes, label=form, **style)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("tokens")
    axes[0, 0].set_ylabel("microseconds of a core per token")
    axes[1, 0].set_ylabel("megabytes of temporaries")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


# What is claimed, with the figure, and whether it holds; None where it was not measured.
Claim = tuple[str, bool | None]


def against_scan(found: Table) -> Claim:
    """Both passes, at 1,024 to 4,096 tokens."""
    pairs = [
        (costs["time scan"], costs["auto"])
        for (length, name), costs in found.items()
        if name == PASSES[1] and "time scan" in costs and length >= 1024
    ]
    if not pairs:
        return "against the time scan at 1k to 4k tokens", None
    times = min(a.seconds / b.seconds for a, b in pairs)
    share = max(b.memory / a.memory for a, b in pairs)
    line = f"{times:.1f}x the time scan forward and backward at 1k to 4k tokens, {share:.3f} of its"
    return f"{line} memory (at least 5x, at most 0.125)", times >= 5 and share <= 1 / 8


def against_official(found: Table) -> Claim:
    """The fused form, over the whole table."""
    pairs = [(c["official"], c["fused"]) for c in found.values() if "official" in c]
    times = statistics.median(a.seconds / b.seconds for a, b in pairs)
    share = statistics.median(b.memory / a.memory for a, b in pairs)
    line = f"fused {times:.2f}x the official two passes, {share:.2f} of their memory (medians; at "
    return f"{line}least 1.4x, at most 0.75)", times >= 1.4 and share <= 0.75


def against_attention(found: Table) -> Claim:
    """Either pass, at 4,096 tokens."""
    ratios = [
        found[4096, name]["attention"].seconds / found[4096, name]["auto"].seconds
        for name in PASSES
        if "attention" in found.get((4096, name), {})
    ]
    if not ratios:
        return "against softmax attention at 4,096 tokens", None
    least = min(ratios)
    return f"{least:.1f}x softmax attention at 4,096 tokens (at least 20x)", least >= 20


def per_token(found: Table) -> Claim:
    """The longest sequence against one of 4,096, forward and backward, and forward."""
    last = max(length for length, _ in found)
    ratios = [
        found[last, name]["auto"].seconds / last / (found[4096, name]["auto"].seconds / 4096)
        for name in PASSES
        if (4096, name) in found
    ]
    if not ratios or last == 4096:
        return "a token of a longer sequence against one of 4,096", None
    most = max(ratios)
    return f"a token of {last} costs {most:.2f} of one of 4,096 (at most 1.3)", most <= 1.3


def never_slower(found: Table) -> Claim:
    """What is chosen, at every point of the table."""
    ratios = {
        point: costs["auto"].seconds / min(costs[form].seconds for form in FORMS if form in costs)
        for point, costs in found.items()
    }
    (length, name), most = max(ratios.items(), key=lambda item: item[1])
    line = f"auto takes {most:.2f} of the best form at worst, {name} at {length} tokens"
    return f"{line} (at most 1.05)", most <= 1.05


CLAIMS = (against_scan, against_official, against_attention, per_token, never_slower)

if __name__ == "__main__":
    sys.exit(main())
