"""Scenes for segmentation: real objects pasted on crops of real photographs, with exact masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from bigr_jax.data.cards import CARDS, locate
from bigr_jax.data.embedded import open_digits, open_fashion_mnist, open_mnist5k
from bigr_jax.data.source import NOT_ASKED, ArraySource, Info, Request
from bigr_jax.errors import UserError

EXAMPLES = {"train": 8000, "test": 1000}
# Both lie in scikit-learn's wheel, beside its digits.
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
# Rows at the foot of a photograph that the test part alone shows; shortest and longest side of the
# square crops, in pixels of the photograph.
TEST_ROWS, CROPS = 128, (64, 128)
# How many objects a scene has, how long they are, as shares of its side, and by how many grey
# levels a channel of an object differs from the mean of what it covers.
OBJECTS, LENGTHS, CONTRASTS = (3, 6), (14 / 64, 24 / 64), (48, 120)
# The same of tiles, and what of a tile's side its object takes.
TILES, TILE_LENGTHS, INSIDE = (2, 4), (20 / 64, 36 / 64), 0.8
# An object is where it covers more than half. An edge that covers less is of two things at once and
# is not asked for, as borders in PASCAL VOC are not; below SOFT it is hardly seen.
SOLID, SOFT = 0.5, 0.1
_FOLDER = "sklearn/datasets/images"
# How objects are opened, and the side that their files have.
_OPENERS: Mapping[str, tuple[Callable[[Request], ArraySource], int]] = {
    "mnist5k": (open_mnist5k, 28),
    "digits": (open_digits, 8),
    "fashion_mnist": (open_fashion_mnist, 28),
}
Scene = tuple[np.ndarray, np.ndarray]


class SceneSource:
    """Scenes that are drawn when they are asked for.

    draw   index -> (image uint8 [H, W, C], segments uint8 [H, W]), the same whenever it is called
    count  the number of scenes
    """

    def __init__(self, draw: Callable[[int], Scene], count: int, info: Info) -> None:
        self.info = info
        self._draw, self._count = draw, count

    def __len__(self) -> int:
        return self._count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 [n, H, W, C], "segments": uint8 [n, H, W]} of any n indices.

        A segment is 0 of the background, the class + 1 of the object in front, and NOT_ASKED.
        """
        images = np.empty((len(indices), *self.info.image_shape), np.uint8)
        segments = np.empty(images.shape[:3], np.uint8)
        for row, index in enumerate(np.asarray(indices).tolist()):
            images[row], segments[row] = self._draw(index)
        return {"image": images, "segments": segments}


def open_scenes(request: Request) -> SceneSource:
    """Returns scenes of objects of a set inside a package: `scenes:mnist5k`, digits, fashion_mnist.

    3 to 6 objects, of grey level or tint at random, cover one another and a crop of a photograph.
    Objects of the test part are those of the set's own test part, and so are places of the
    photographs. Scenes are drawn from a seed once asked for, and kept where ram_limit allows.
    `tiles:NAME` has 2 to 4 larger objects, each on an opaque tile that is of its class as well.
    Raises UserError for another name, a side below 16, and where a package is missing.
    """
    name = request.argument
    if name not in _OPENERS:
        legal = ", ".join(_OPENERS)
        raise UserError(f"data.source={request.source!r}: no objects {name!r}; legal: {legal}")
    if request.size < 16:
        raise UserError(f"data.size={request.size} is too small for scenes; legal: from 16")
    place, card = locate("digits"), CARDS["digits"]
    folder = Path() if place is None else place / _FOLDER
    if place is None or not all((folder / file).is_file() for file in PHOTOGRAPHS):
        raise UserError(
            f"data.source={request.source!r} needs {' and '.join(PHOTOGRAPHS)} of {card.package}, "
            f"which are not here; get them with: {card.install}"
        )
    return _scenes(folder, request.with_channels(3))


@functools.lru_cache(maxsize=2)
def _scenes(folder: Path, request: Request) -> SceneSource:
    # Cached, because a study opens the same two parts for every one of its runs.
    opener, side = _OPENERS[request.argument]
    objects = opener(request._replace(size=side, channels=1))
    columns = objects.gather(np.arange(len(objects)))
    pictures, labels = columns["image"][..., 0], columns["label"]
    test, count = request.split == "test", EXAMPLES[request.split]
    tiles = request.source.startswith("tiles:")
    photographs = [photograph(folder / file, request) for file in PHOTOGRAPHS]

    def draw(index: int) -> Scene:
        # Of NumPy's generators, the one whose numbers are promised to stay the same.
        random = np.random.RandomState((test, index))
        return scene(random, photographs, pictures, labels, request.size, tiles)

    known = objects.info
    info = Info(
        name=request.source,
        num_classes=1 + known.num_classes,
        class_names=("background", *known.class_names),
        image_shape=request.image_shape,
        licence=f"{known.licence}, CC-BY-2.0 (photographs)",
        origin=f"{known.origin}; on photographs by danielbuechele and vultilion",
    )
    return SceneSource(
        functools.cache(draw) if request.fits_in_memory(count) else draw, count, info
    )


def photograph(path: Path, request: Request) -> Image.Image:
    """Returns the rows of a photograph that a part shows, in colour or in grey."""
    with Image.open(path) as image:
        whole = image.convert("RGB" if request.channels == 3 else "L")
    border = whole.height - TEST_ROWS
    top, bottom = (border, whole.height) if request.split == "test" else (0, border)
    return whole.crop((0, top, whole.width, bottom))


def scene(
    random: np.random.RandomState,
    photographs: list[Image.Image],
    pictures: np.ndarray,
    labels: np.ndarray,
    size: int,
    tiles: bool = False,
) -> Scene:
    """Returns a scene of `size` pixels, uint8 [size, size, C], and its segments [size, size].

    pictures  uint8 [N, h, w], of objects; a grey level is how much the object covers
    labels    int [N], their classes
    tiles     objects lie on tiles
    """
    chosen, side = photographs[random.randint(len(photographs))], _between(random, CROPS)
    left, top = (random.randint(whole - side + 1) for whole in chosen.size)
    # Cropped first: scaling would look beyond the crop.
    crop = chosen.crop((left, top, left + side, top + side))
    image = np.array(crop.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    image, segments = image.reshape(size, size, -1), np.zeros((size, size), np.uint8)
    shortest, longest = (round(share * size) for share in (TILE_LENGTHS if tiles else LENGTHS))
    for _ in range(_between(random, TILES if tiles else OBJECTS)):
        number = random.randint(len(pictures))
        length = _between(random, (shortest, longest))
        alpha = cut_out(pictures[number], round(INSIDE * length) if tiles else length)
        if tiles:
            alpha = _centred(alpha, length)
        top, left = (random.randint(size - side + 1) for side in alpha.shape)
        here = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
        if tiles:
            _paint(random, image[here], np.ones((length, length, 1)))
        _paint(random, image[here], alpha[..., None])
        if tiles:
            segments[here] = 1 + labels[number]
            continue
        segments[here][alpha > SOFT] = NOT_ASKED
        segments[here][alpha > SOLID] = 1 + labels[number]
    return np.round(image).astype(np.uint8), segments


def cut_out(picture: np.ndarray, length: int) -> np.ndarray:
    """Returns the object of a picture on black, uint8 [h, w], without the margin, its longer side
    scaled to `length`: how much it covers, float64 in [0, 1].
    """
    image = Image.fromarray(picture)
    image = image.crop(image.getbbox())
    scale = length / max(image.size)
    sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(sides, Image.Resampling.BICUBIC)) / 255


def _centred(alpha: np.ndarray, side: int) -> np.ndarray:
    """Returns how much an object covers of a square that it stands in the middle of."""
    square = np.zeros((side, side))
    top, left = ((side - length) // 2 for length in alpha.shape)
    square[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
    return square


def _paint(random: np.random.RandomState, under: np.ndarray, alpha: np.ndarray) -> None:
    """Lighter or darker than what is below, whichever comes, so that no level tells an object."""
    mean = (alpha * under).sum((0, 1)) / alpha.sum()
    sign = np.where(random.randint(0, 2, mean.shape), 1, -1)
    change = sign * random.uniform(*CONTRASTS, mean.shape)
    legal = (mean + change >= 0) & (mean + change <= 255)
    under += alpha * (np.where(legal, mean + change, mean - change) - under)


def _between(random: np.random.RandomState, ends: tuple[int, int]) -> int:
    return int(random.randint(ends[0], ends[1] + 1))
