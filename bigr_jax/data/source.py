"""What a source of labelled images is, held in memory or decoded when asked for."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from tqdm import tqdm

from bigr_jax.errors import UserError

# In a map of classes ("segments"): a place at which none is asked for.
NOT_ASKED = 255
_CHUNK = 1024
# More corrupt examples than both are no accident.
_CORRUPT_COUNT, _CORRUPT_SHARE = 10, 0.01
_UNSEEN, _GOOD, _CORRUPT = range(3)


class Info(NamedTuple):
    """What a set is: image_shape is (height, width, channels); label i means class_names[i].

    Of sequences of tokens image_shape is (length,), and num_classes the size of the vocabulary; of
    maps of features image_shape is (height, width).
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
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
    tokenizer: str = ""
    noise: str = ""
    stride: float = 1.0
    held_out: str = ""
    held_every: int = 1
    labels: int = 0

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
    """A fixed sequence of labelled images, or of codes of images, with random access."""

    @property
    def info(self) -> Info:
        """What the data set is."""

    def __len__(self) -> int:
        """The number of examples."""

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 [n, H, W, C], "label": int32 [n]} of any n indices.

        A source of codes gives "codes", see `data.codes`, in place of the images, one of sequences
        "tokens", see `data.tokens`, `data.interactions` and `data.sentences`, in place of both or
        of the images alone; where every place has a class, "segments" are in place of the labels,
        and of maps "features", float [n, H, W, F], in that of the images.
        """


class ArraySource:
    """A source that lies in memory, so that a whole batch is one indexing of an array.

    corrupt  how many of the images stand in for others that could not be read
    Raises ValueError where images (uint8 [N, H, W, C]) and labels (int [N]) do not belong together.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, info: Info, corrupt: int = 0
    ) -> None:
        if images.dtype != np.uint8 or images.shape != (len(labels), *info.image_shape):
            raise ValueError(
                f"images are {images.dtype} {images.shape}, "
                f"expected uint8 {(len(labels), *info.image_shape)}"
            )
        self.info = info
        self.corrupt = corrupt
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
    name     index -> what a warning calls the example

    An example that cannot be read is named once in a warning and counted in `corrupt`; the next one
    that can, the first following the last, is given in its place, so that order and shapes are the
    same on every host and after a restart. Raises UserError where none can be read, and where more
    than ten and more than one in a hundred of those tried cannot.
    """

    def __init__(
        self,
        records: Any,
        decode: Callable[[Any], tuple[np.ndarray, int]],
        info: Info,
        name: Callable[[int], str] | None = None,
    ) -> None:
        self.info = info
        self.corrupt = 0
        self._records = records
        self._decode = decode
        self._name = name or (lambda index: f"record {index} of {info.origin}")
        self._state = np.full(len(records), _UNSEEN, np.uint8)
        self._lock = threading.Lock()
        self._first = (len(self), "")  # The first that is corrupt, and what is said of it.

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the image, uint8 [H, W, C], and the label of one example."""
        return self._readable((index, None))

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 [n, H, W, C], "label": int32 [n]} of any n indices."""
        wanted = np.asarray(indices).tolist()
        pairs = list(zip(wanted, self._together(wanted), strict=True))
        images = np.empty((len(wanted), *self.info.image_shape), np.uint8)
        labels = np.empty(len(wanted), np.int32)
        for row, (image, label) in enumerate(in_threads(self._readable, pairs)):
            images[row], labels[row] = image, label
        return {"image": images, "label": labels}

    def _together(self, wanted: list[int]) -> Sequence[Any]:
        alone = [None] * len(wanted)
        together = getattr(self._records, "__getitems__", None)
        if together is None:
            return alone
        try:
            return together(wanted)
        except Exception:  # One record fails; which one shows when each is read alone.
            return alone

    def _readable(self, pair: tuple[int, Any]) -> tuple[np.ndarray, int]:
        """Returns the example at an index, or the next that can be read; None: not fetched yet."""
        first, record = pair
        for step in range(len(self)):
            index = (first + step) % len(self)
            if self._state[index] == _CORRUPT:
                continue
            try:
                wanted = self._records[index] if step or record is None else record
                found = self._decode(wanted)
            except (UserError, MemoryError):
                raise
            except Exception as error:  # Pillow's decoders raise many kinds.
                self._pass_over(index, error)
                continue
            self._state[index] = _GOOD
            return found
        raise UserError(
            f"none of the {len(self)} examples of {self.info.origin} can be read; "
            f"{self._first[1]}; put whole ones in their place"
        )

    def _pass_over(self, index: int, error: Exception) -> None:
        with self._lock:
            if self._state[index] == _CORRUPT:
                return
            self._state[index] = _CORRUPT
            self.corrupt += 1
            corrupt, tried = self.corrupt, int(np.count_nonzero(self._state))
            said = f"{self._name(index)} cannot be read ({error or type(error).__name__})"
            self._first = min(self._first, (index, said))
        logging.warning("%s; the next one stands in for it, %d so far", said, corrupt)
        if corrupt > max(_CORRUPT_COUNT, _CORRUPT_SHARE * tried):
            raise UserError(
                f"{corrupt} of {tried} examples of {self.info.origin} cannot be read, more than "
                f"{_CORRUPT_SHARE:.0%}; {said}"
            )


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
    return ArraySource(images, labels, source.info, source.corrupt)
