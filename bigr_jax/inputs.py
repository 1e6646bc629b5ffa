"""Images, masks and labels as people have them, made what a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bigr_jax.data.image import as_image, square
from bigr_jax.errors import UserError, nearest

CHANNELS = (1, 3, 4)


class Pictures(NamedTuple):
    """Images that fit a model, and what is forgotten of those that were given.

    pixels  uint8 [N, size, size, channels]
    sides   (height, width) of every image as it was given
    single  whether it was one image, not several
    """

    pixels: np.ndarray
    sides: tuple[tuple[int, int], ...]
    single: bool


def pictures(given: Any, size: int, channels: int) -> Pictures:
    """Returns images cropped and scaled as those of the data are (`data.image.square`).

    given  a Pillow image, an array [H, W], [H, W, C] or [N, H, W, C] with C 1, 3 or 4, uint8 or
           float in [0, 1], or a list of those that are one image each

    Raises UserError for anything else.
    """
    many = isinstance(given, list | tuple) or np.ndim(given) == 4
    found = [_opened(one) for one in given] if many else [_opened(given)]
    if not found:
        raise UserError("images: there is none")
    pixels = np.stack([square(image, size, channels) for image in found])
    return Pictures(pixels, tuple((image.height, image.width) for image in found), not many)


def masks(given: Any, images: Pictures, name: str = "mask") -> np.ndarray:
    """Returns masks cropped and scaled as the images were: bool [N, size, size], True = marked.

    given   one mask for all images, [H, W] or a Pillow image, or one for each, [N, H, W]; bool, or
            marked where it is above the middle of its range: 127 of uint8, 0.5 of float
    images  what `pictures` gave; a mask may be of another size, but not of another aspect
    name    what messages call it

    Raises UserError for another aspect, and for a mask that marks nothing.
    """
    many = np.ndim(given) == 3
    found = [_marked(one, name) for one in given] if many else [_marked(given, name)]
    count, size = len(images.sides), images.pixels.shape[1]
    if len(found) not in (1, count):
        raise UserError(f"{name}: {len(found)} masks for {count} images")
    rows = []
    for (height, width), mask in zip(images.sides, found * (count // len(found)), strict=True):
        high, wide = mask.shape
        # Scaled to the height of the image, a mask of the same aspect is as wide but for rounding.
        if abs(wide * height - width * high) >= max(high, height):
            raise UserError(
                f"{name}: {high} x {wide} is of another aspect than the image, {height} x {width}; "
                "legal: the same height and width, or both scaled alike"
            )
        rows.append(mask[_kept(high, mask.shape, size)[:, None], _kept(wide, mask.shape, size)])
        if not rows[-1].any():
            raise UserError(f"{name} marks nothing of the image; white, or True, is what it marks")
    return np.stack(rows)


def label(given: Any, class_names: Sequence[str], name: str = "label") -> int:
    """Returns the number of a class that is given by number or by name.

    Raises UserError where there is no such class.
    """
    if isinstance(given, str) and given in class_names:
        return list(class_names).index(given)
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if whole and 0 <= number < len(class_names):
        return int(number)
    hint = nearest(str(given), class_names)
    few = ", ".join(class_names[:10]) + ", ..." * (len(class_names) > 10)
    raise UserError(
        f"{name}={given!r} is no class{hint}; legal: 0 to {len(class_names) - 1}, or a name: {few}"
    )


def labels(given: Any, class_names: Sequence[str], name: str = "labels") -> np.ndarray:
    """Returns the numbers of one class or of several, int32 [n]; see `label`."""
    several = isinstance(given, list | tuple | range) or np.ndim(given) == 1
    found = [label(one, class_names, name) for one in (given if several else [given])]
    if not found:
        raise UserError(f"{name}: there is none")
    return np.asarray(found, np.int32)


def _opened(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):
        return given
    array = np.asarray(given)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in CHANNELS or not array.size:
        raise UserError(
            f"image of shape {np.shape(given)}; legal: [H, W], [H, W, C] or [N, H, W, C], C 1, 3, 4"
        )
    if array.dtype != np.uint8:
        floating = np.issubdtype(array.dtype, np.floating)
        if not floating or not (array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"image of {array.dtype}, {array.min():g} to {array.max():g}; legal: uint8, or "
                "float in [0, 1]"
            )
        array = np.round(array * 255.0).astype(np.uint8)
    return as_image(np.ascontiguousarray(array))


def _marked(given: Any, name: str) -> np.ndarray:
    array = np.asarray(given.convert("L") if isinstance(given, Image.Image) else given)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise UserError(
            f"{name}: {array.dtype} of shape {array.shape}; legal: [H, W] or [N, H, W] for N images"
        )
    if array.dtype.kind == "f":
        return array > 0.5
    # A mask of whole numbers that knows only 0 and 1 is meant as it is.
    return array > (127 if array.max() > 1 else 0)


def _kept(length: int, shape: tuple[int, ...], size: int) -> np.ndarray:
    """The indices along a side that lie nearest to the pixels of the centre square."""
    scaled = round(length * size / min(shape))
    start = (scaled - size) // 2
    return ((np.arange(size) + start + 0.5) * length / scaled).astype(int)
