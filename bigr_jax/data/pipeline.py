"""Batches in an order that only the seed and the step decide.

Hosts, threads, prefetching and restarts change nothing: row r of global batch s is position
s * batch_size + r of one endless sequence, in which each epoch is a permutation of the examples; or
in which all that a permutation holds stands several times in a row, where that is asked for.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import grain
import numpy as np

from bigr_jax.data.division import PREFIX, LazyPart, held_of
from bigr_jax.data.order import Order
from bigr_jax.data.source import LazySource, Source
from bigr_jax.errors import UserError

__all__ = ["Batches", "HostBatch", "Order", "Share", "ahead", "eval_batches", "train_batches"]

HostBatch = dict[str, np.ndarray]
Batches = Generator[HostBatch, None, None]
# Threads wait for the disk as well as compute.
_THREADS = max(16, os.cpu_count() or 1)
# element numbers of this host, int64 [n] -> example indices [n], mask float32 [n]
_Plan = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Share(NamedTuple):
    """What a process reads of every global batch: `blocks`, ascending, of the `of` equal ones
    into which its rows are cut.
    """

    blocks: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, batch_size: int) -> int:
        """Returns how many rows these are. Raises UserError where the batch does not divide."""
        if not set(self.blocks) <= set(range(self.of)):
            raise ValueError(f"blocks {self.blocks} are not all of 0 to {self.of - 1}")
        if batch_size < 1 or batch_size % self.of:
            raise UserError(f"batch_size={batch_size} does not divide into {self.of} equal parts")
        return batch_size // self.of * len(self.blocks)

    def positions(self, elements: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns where these elements of this process's sequence, int64 [n], stand in the whole
        one.
        """
        each = batch_size // self.of
        step, row = np.divmod(elements, each * len(self.blocks))
        block, rest = np.divmod(row, each)
        return step * batch_size + np.asarray(self.blocks)[block] * each + rest


_ALL = Share()


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    share: Share = _ALL,
    prefetch: int = 2,
    threads: int = _THREADS,
    repeat: int = 1,
) -> Batches:
    """Returns the endless iterator of a share of the global batches from start_step on.

    A batch is {"image": uint8 [b, H, W, C], "label": int32 [b], "index": int32 [b], "mask": float32
    ones [b]}, b = `share.rows(batch_size)`; a source of codes gives "codes" in place of the
    images, and of several copies of an image another one every time. Where some examples are held
    out, see `data.division`, rows of those are beside them, in an order of their own, under names
    that begin with "held_". With `repeat` every example
    stands so many times in a row (Hoffer et al., arXiv 1901.09335), and `repeat` epochs are one
    permutation. `prefetch` batches are made ahead in a background thread (0: none); `threads`
    decode the examples of a LazySource. What the source raises is raised to the consumer; closing
    the iterator ends the threads. Raises UserError where batch_size does not divide.
    """
    rows = share.rows(batch_size)
    length, copies = len(source), getattr(source, "copies", 1)
    order, held = Order(length, seed), held_of(source)

    def plan(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions = share.positions(elements, batch_size)
        drawn, again = np.divmod(positions, repeat)
        indices = order.at(drawn)
        # In as many turns as there are copies, every image is seen once in each of them.
        copy = (drawn // length * repeat + again + indices) % copies
        return indices + length * copy, np.ones(len(elements), np.float32)

    steps = range(start_step, sys.maxsize // rows)
    own = _batches(source, plan, rows, steps, prefetch, threads)
    if held is None:
        return own
    where = (start_step, share, prefetch, threads)
    size, again = held.rows(batch_size), held.seed(seed)
    return _beside(own, train_batches(held.source, size, again, *where))


def eval_batches(
    source: Source,
    batch_size: int,
    share: Share = _ALL,
    prefetch: int = 2,
    threads: int = _THREADS,
) -> Batches:
    """Returns the iterator of a share of the batches over all examples once, in order.

    Batches are as in `train_batches`, equally many on every process; the last is filled up by
    repeating the last example with mask 0, which keeps the padding as harmless to a model as data.
    """
    rows = share.rows(batch_size)
    length = len(source)

    def plan(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions = share.positions(elements, batch_size)
        return np.minimum(positions, length - 1), (positions < length).astype(np.float32)

    return _batches(source, plan, rows, range(-(-length // batch_size)), prefetch, threads)


def _batches(
    source: Source, plan: _Plan, rows: int, steps: range, prefetch: int, threads: int
) -> Batches:
    if isinstance(source, LazySource | LazyPart):
        return _decoded(source, plan, rows, steps, prefetch, threads)

    def gather(step: int) -> HostBatch:
        indices, mask = plan(np.arange(step * rows, (step + 1) * rows, dtype=np.int64))
        index = (indices % len(source)).astype(np.int32)
        return {**source.gather(indices), "index": index, "mask": mask}

    return ahead(gather, steps, prefetch)


def _beside(own: Batches, held: Batches) -> Batches:
    with contextlib.closing(own), contextlib.closing(held):
        for batch, other in zip(own, held, strict=True):
            yield {**batch, **{PREFIX + name: column for name, column in other.items()}}


def _decoded(
    source: LazySource | LazyPart, plan: _Plan, rows: int, steps: range, prefetch: int, threads: int
) -> Batches:
    def read(element: int) -> dict[str, np.ndarray | np.generic]:
        indices, mask = plan(np.asarray([element], np.int64))
        image, label = source.read(int(indices[0]))
        index = indices.astype(np.int32)[0]
        return {"image": image, "label": np.int32(label), "index": index, "mask": mask[0]}

    elements = grain.MapDataset.range(steps.start * rows, steps.stop * rows).map(read)
    buffer = prefetch * rows
    options = grain.ReadOptions(num_threads=min(threads, buffer), prefetch_buffer_size=buffer)
    reader = iter(elements.to_iter_dataset(options).batch(rows))
    with contextlib.closing(reader):
        yield from ahead(lambda step: next(reader), steps, prefetch)


def ahead(make: Callable[[int], HostBatch], steps: range, prefetch: int = 2) -> Batches:
    """Yields make(step) of every step, in order, `prefetch` of them made ahead in a thread."""
    if prefetch == 0:
        yield from map(make, steps)
        return
    pending: deque[Future[HostBatch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        try:
            for step in steps:
                pending.append(pool.submit(make, step))
                if len(pending) > prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
