"""What a source of labelled images is, held in memory or decoded when asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

_CHUNK = 1024


class Info(NamedTuple):
    """What a set is: image_shape is (height, width, channels); label i means class_names[i]."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    licence: str
    origin: str


class Request(NamedTuple):
    """What a config asks for; `argument` follows the colon of `source`, ram_limit is in bytes.

    channels is 0 until `with_channels` has said what the data's own are.
    """

    source: str
    argument: str
    split: str
    size: int
    channels: int
    data_dir: str
    ram_limit: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image that the source gives."""
        return (self.size, self.size, self.channels)

    def with_channels(self, own: int) -> Request:
        """Returns the request with the data's own channels where the config asks for none."""
        return self._replace(channels=self.channels or own)

    def fits_in_memory(self, count: int) -> bool:
        """Whether `count` decoded images stay within ram_limit."""
        return count * self.size * self.size * self.channels <= self.ram_limit


class Source(Protocol):
    """A fixed sequence of labelled images with random access."""

    @property
    def info(self) -> Info:
        """What the data set is."""

    def __len__(self) -> int:
        """The number of examples."""

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 [n, H, W, C], "label": int32 [n]} of any n indices."""


class ArraySource:
    """A source that lies in memory, so that a whole batch is one indexing of an array.

    Raises ValueError where images (uint8 [N, H, W, C]) and labels (int [N]) do not belong together.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, info: Info) -> None:
        if images.dtype != np.uint8 or images.shape != (len(labels), *info.image_shape):
            raise ValueError(
                f"images are {images.dtype} {images.shape}, "
                f"expected uint8 {(len(labels), *info.image_shape)}"
            )
        self.info = info
        self._images = images
        self._labels = np.asarray(labels).astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 [n, H, W, C], "label": int32 [n]} of any n indices."""
        return {"image": self._images[indices], "label": self._labels[indices]}


class LazySource:
    """A source whose examples are decoded when asked for.

    records  a sequence of undecoded examples; its `__getitems__(indices)` is used where it has one
    decode   undecoded example -> (image uint8 [H, W, C], label); called from several threads
    """

    def __init__(
        self, records: Any, decode: Callable[[Any], tuple[np.ndarray, int]], info: Info
    ) -> None:
        self.info = info
        self._records = records
        self._decode = decode

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the image, uint8 [H, W, C], and the label of one example."""
        return self._decode(self._records[index])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 [n, H, W, C], "label": int32 [n]} of any n indices."""
        wanted = np.asarray(indices).tolist()
        together = getattr(self._records, "__getitems__", None)
        raw = together(wanted) if together else [self._records[index] for index in wanted]
        examples = list(in_threads(self._decode, raw))
        images = np.empty((len(wanted), *self.info.image_shape), np.uint8)
        for row, (image, _) in enumerate(examples):
            images[row] = image
        return {"image": images, "label": np.asarray([label for _, label in examples], np.int32)}


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yields function(item) of every item, in order, computed by one thread per processor."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), _CHUNK):
            yield from pool.map(function, items[start : start + _CHUNK])


def with_progress(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """Yields the items while a bar runs on a terminal; elsewhere one line says what is going on."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what)
    else:
        print(what, file=sys.stderr)
        yield from items


def in_memory(source: LazySource) -> ArraySource:
    """Returns the source with all its examples decoded, once."""
    count, starts = len(source), range(0, len(source), _CHUNK)
    images = np.empty((count, *source.info.image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    what = f"decoding {count} images of {source.info.name}"
    for start in with_progress(starts, len(starts), what):
        rows = np.arange(start, min(start + _CHUNK, count))
        part = source.gather(rows)
        images[rows], labels[rows] = part["image"], part["label"]
    return ArraySource(images, labels, source.info)
