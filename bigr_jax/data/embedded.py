"""Sets that lie inside packages: 5000 MNIST digits, 1797 8x8 digits, Fashion-MNIST."""

from __future__ import annotations

import functools
import gzip
import io
from pathlib import Path

import numpy as np

from bigr_jax.data.cards import CARDS, require
from bigr_jax.data.image import fit, pad
from bigr_jax.data.source import ArraySource, Info, Request
from bigr_jax.data.split import held_out
from bigr_jax.errors import UserError

_TEST_FRACTION = 0.2
_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open_mnist5k(request: Request) -> ArraySource:
    """Returns 4000 train or 1000 test MNIST digits, 28x28, balanced over the classes.

    Larger sizes pad with black around the centre; smaller ones scale. The test part is the fifth of
    each class whose index hashes lowest (`held_out`).
    """
    pixels, labels = _columns(require("mnist5k") / next(iter(CARDS["mnist5k"].files)), 5000, 784)
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
    return _source("mnist5k", *_part(images, labels, request), _DIGITS, request)


def open_digits(request: Request) -> ArraySource:
    """Returns a train or test part (1438, 359) of the 8x8 digits, scaled bicubically to the size.

    The grey levels 0..16 become 0..255. The parts are chosen as those of mnist5k.
    """
    path = require("digits") / next(iter(CARDS["digits"].files))
    return _source("digits", *_digits(path, request.with_channels(1)), _DIGITS, request)


def open_fashion_mnist(request: Request) -> ArraySource:
    """Returns the 60000 train or 10000 test images of Fashion-MNIST, resized as mnist5k."""
    folder, part = require("fashion_mnist"), "train" if request.split == "train" else "t10k"
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.shape != (len(labels), 28, 28):
        raise UserError(f"{folder}: {part} images {images.shape} and labels {labels.shape} differ")
    return _source("fashion_mnist", images[..., None], labels, _FASHION, request)


def _source(
    name: str, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...], request: Request
) -> ArraySource:
    # Scaling would blur the digits' edges, and their margin is black: a larger frame costs nothing.
    resize = pad if images.shape[1] == 28 <= request.size else fit
    card, request = CARDS[name], request.with_channels(1)
    info = Info(name, len(names), names, request.image_shape, card.licence, card.origin)
    return ArraySource(resize(images, request.size, request.channels), labels, info)


def _part(
    images: np.ndarray, labels: np.ndarray, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    test = held_out(labels, [str(index) for index in range(len(labels))], _TEST_FRACTION)
    chosen = test if request.split == "test" else ~test
    return images[chosen], labels[chosen]


@functools.lru_cache(maxsize=2)
def _digits(path: Path, request: Request) -> tuple[np.ndarray, np.ndarray]:
    # Cached, because a study opens the same two parts for every one of its runs.
    pixels, labels = _columns(path, 1797, 64)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    images, labels = _part(images, labels, request)
    return fit(images, request.size, request.channels), labels


@functools.lru_cache(maxsize=2)
def _columns(path: Path, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    # Cached, because a run opens both parts of the same file.
    text = gzip.decompress(path.read_bytes()).decode()
    values = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32)
    if values.shape != (rows, width + 1):
        raise UserError(f"{path} holds {values.shape} numbers, expected {(rows, width + 1)}")
    return values[:, :-1], values[:, -1].astype(np.int32)


def _idx(path: Path) -> np.ndarray:
    # The idx format: two zero bytes, type 8 (uint8), the number of axes, big-endian sizes, values.
    try:
        data = gzip.decompress(path.read_bytes())
        axes = data[3]
        shape = np.frombuffer(data, ">i4", axes, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise UserError(f"{path} is not an idx file in gzip: {error}") from error
