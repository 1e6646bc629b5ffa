"""Images per second of the in-memory input pipeline, against grain's DataLoader.

    python benchmarks/data.py [--images=60000] [--size=32] [--channels=3] [--batch=256]
                              [--batches=50] [--repeats=7]

Both give shuffled batches of the same uint8 images in memory, in one process; grain's DataLoader,
and its MapDataset beside it, with each of several numbers of threads: the fastest DataLoader is
what the others are compared with. Every image must be that of its index, and an epoch must hold
every index once, or nothing is timed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from timing import HEADER, compared, interleaved, positive, table

from bigr_jax.data import train_batches
from bigr_jax.data.source import ArraySource, Info

THREADS = (0, 1, 4, 16)


class Records:
    """The source as grain reads it, one example at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example and its index."""
        return {"image": self.images[index], "label": self.labels[index], "index": index}


def main(argv: Sequence[str] | None = None) -> int:
    """Checks and times; returns the exit status."""
    given = arguments(argv)
    rng = np.random.default_rng(0)
    shape = (given.size, given.size, given.channels)
    images = rng.integers(0, 256, (given.images, *shape), np.uint8)
    labels = rng.integers(0, 10, given.images).astype(np.int32)
    source = ArraySource(images, labels, Info("noise", 10, tuple("0123456789"), shape, "", ""))
    records = Records(images, labels)

    def ours() -> Iterator[Any]:
        return train_batches(source, given.batch, seed=0)

    def theirs(make: Any, threads: int) -> Iterator[Any]:
        return iter(make(records, given.batch, threads))

    made = {"DataLoader": loader, "MapDataset": dataset}
    checked = itertools.chain([ours()], (theirs(make, 0) for make in made.values()))
    wrong = "".join(difference(stream, images, given.batch) for stream in checked)
    if wrong:
        print(f"UNEQUAL: {wrong}")
        return 1
    print("equal: the same images under the same indices, and every one once in an epoch")
    print(
        f"{given.images} images {shape}, uint8, batches of {given.batch}; seconds for "
        f"{given.batches} batches, median of {given.repeats}\n"
    )
    streams = {"bigr_jax": ours()}
    for name, make in made.items():
        streams |= {f"grain.{name}, {n} threads": theirs(make, n) for n in THREADS}
    forms = {
        name: lambda turn, stream=stream: take(stream, given.batches)
        for name, stream in streams.items()
    }
    taken = interleaved(forms, given.repeats)
    loaders = [name for name in forms if "DataLoader" in name]
    best = min(loaders, key=lambda name: taken[name].median)
    print(table(HEADER, compared(taken, best)))
    for stream in streams.values():
        with contextlib.suppress(AttributeError):
            stream.close()  # type: ignore[attr-defined]
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (
        ("images", 60_000),
        ("size", 32),
        ("channels", 3),
        ("batch", 256),
        ("batches", 50),
        ("repeats", 7),
    ):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"default {default}")
    return parser.parse_args(argv)


def loader(records: Records, batch: int, threads: int) -> Any:
    """Returns grain's DataLoader of an endless shuffled sequence, batched, in this process."""
    return grain.DataLoader(
        data_source=records,
        sampler=grain.samplers.IndexSampler(
            len(records), shard_options=grain.sharding.NoSharding(), shuffle=True, seed=0
        ),
        operations=[grain.transforms.Batch(batch, drop_remainder=True)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch),
    )


def dataset(records: Records, batch: int, threads: int) -> Any:
    """Returns the same as a pipeline of grain's newer interface."""
    examples: Any = grain.MapDataset.source(records).shuffle(seed=0).repeat()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    return examples.batch(batch, drop_remainder=True).to_iter_dataset(options)


def difference(stream: Iterator[Any], images: np.ndarray, batch: int) -> str:
    """Returns what is wrong with an epoch of a stream, "" where nothing is."""
    seen: list[int] = []
    for found in itertools.islice(stream, len(images) // batch):
        if not np.array_equal(found["image"], images[found["index"]]):
            return "an image is not that of its index. "
        seen += list(found["index"])
    repeated = len(seen) - len(set(seen))
    return f"{repeated} indices come twice in an epoch. " if repeated else ""


def take(stream: Iterator[Any], count: int) -> None:
    """Draws `count` batches and lets go of them."""
    for _ in itertools.islice(stream, count):
        pass


if __name__ == "__main__":
    sys.exit(main())
