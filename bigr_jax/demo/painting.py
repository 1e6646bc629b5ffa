"""What the page shows of images and masks, and what it makes of what was painted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

# The side of the canvas in pixels, at least: a brush needs room.
CANVAS = 512
PAINT = (255, 90, 54)
_COVER = 0.6


def enlargement(size: int) -> int:
    """Returns how many pixels of the canvas a side of an image's pixel takes."""
    return -(-CANVAS // size)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [H, W, C], for the canvas, uint8 [H f, W f, 3], without smoothing."""
    factor = enlargement(image.shape[0])
    return coloured(image).repeat(factor, axis=0).repeat(factor, axis=1)


def coloured(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [H, W, C] with C 1 or 3, as uint8 [H, W, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3)).copy()


def painted(layers: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns the mask of an image that was painted over on the canvas, bool [size, size].

    layers  uint8 [H, W, 4], opaque or half so where there is paint

    A pixel of the image is marked where at least half of it is painted.
    """
    found = np.zeros((size, size), bool)
    alphas = [layer[..., 3] > 0 for layer in layers]
    if alphas:
        cover = Image.fromarray(np.any(alphas, axis=0).astype(np.uint8) * 255)
        found = np.asarray(cover.resize((size, size), Image.Resampling.BOX)) > 127
    return found


def tinted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns an image [H, W, C] with the colour of the paint where `mask` [H, W] marks it."""
    out = coloured(image)
    mixed = (1 - _COVER) * out[mask] + _COVER * np.asarray(PAINT)
    out[mask] = np.round(mixed).astype(np.uint8)
    return out
