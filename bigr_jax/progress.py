"""What is going on, said on stderr where it takes longer than a moment."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
# Seconds of silence; BIGR_PROGRESS sets another number of them.
PATIENCE = 2.0


def say(text: str) -> None:
    """Prints a line on stderr, once for all processes."""
    jax: Any = sys.modules.get("jax")
    # It may be half imported.
    several = getattr(getattr(jax, "distributed", None), "is_initialized", bool)()
    if not several or jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def slow(what: str) -> Iterator[None]:
    """Says "`what` ..." where the context lasts longer than `PATIENCE`."""
    timer = threading.Timer(_patience(), say, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def steps(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields the items; where they take longer than `PATIENCE` a bar runs on a terminal, and
    elsewhere one line says what is going on.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, delay=_patience(), leave=False)
        return
    with slow(what):
        yield from items


def _patience() -> float:
    return float(os.environ.get("BIGR_PROGRESS", PATIENCE))
