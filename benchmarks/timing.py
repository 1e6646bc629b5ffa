"""Times of several ways to do one thing, as ratios that a busy machine does not bias.

The ways take turns, in one order and then in the other, so that what else the machine does falls on
all of them alike. Every turn gives a ratio; the median is reported, with the lowest and highest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Form = Callable[[int], Any]

# Of the rows of `compared`: the last holds the seconds of all cores together.
HEADER = ("form", "seconds", "times as fast", "by work of cores")


class Taken(NamedTuple):
    """What one form took in every turn: seconds, and those of all cores together."""

    seconds: list[float]
    cores: list[float]

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


class Ratio(NamedTuple):
    """How many times as long one form took as another: the median of the turns, and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(forms: Mapping[str, Form], repeats: int, warm: int = 1) -> dict[str, Taken]:
    """Returns what the forms took in `repeats` turns, after `warm` that do not count.

    forms  {name: function of the number of the turn}; it is called and its result waited for
    """
    taken = {name: Taken([], []) for name in forms}
    for turn in range(-warm, repeats):
        for name in list(forms)[:: -1 if turn % 2 else 1]:
            begin, cores = time.perf_counter(), time.process_time()
            jax.block_until_ready(forms[name](max(turn, 0)))
            if turn >= 0:
                taken[name].seconds.append(time.perf_counter() - begin)
                taken[name].cores.append(time.process_time() - cores)
    return taken


def repeated(function: Callable[..., Any], *inputs: Any) -> Form:
    """Returns the form that calls a function with the same inputs in every turn."""
    return lambda turn: function(*inputs)


def ratio(slow: Taken, fast: Taken, cores: bool = False) -> Ratio:
    """Returns how many times as long `slow` took as `fast`, turn by turn.

    cores  compares the seconds of all cores together, which other programs disturb less
    """
    pairs = zip(*((taken.cores if cores else taken.seconds) for taken in (slow, fast)), strict=True)
    found = [a / max(b, 1e-12) for a, b in pairs]
    return Ratio(statistics.median(found), min(found), max(found))


def compared(taken: Mapping[str, Taken], base: str, per: int = 1) -> list[list[str]]:
    """Returns a row per form, as `HEADER` has it.

    per  units in a call, for example images
    """
    return [
        [
            name,
            f"{one.median / per:.3g}",
            str(ratio(taken[base], one)),
            f"{ratio(taken[base], one, cores=True).median:.2f}",
        ]
        for name, one in taken.items()
    ]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def positive(text: str) -> int:
    """Reads a whole number, 1 or more, from the command line; any other is refused by argparse."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)
