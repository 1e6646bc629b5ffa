"""Grids of images as PNG files: what people look at first."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def grid(
    images: np.ndarray, columns: int, *, names: Sequence[str] = (), scale: int = 0, gap: int = 2
) -> np.ndarray:
    """Returns one picture of `images` in rows of `columns`, with a name at the left of each row.

    images  [n, height, width, channels 1 or 3], float in [0, 1] (clipped) or uint8
    scale   whole-number enlargement without smoothing; 0 = enough for tiles of about 64 pixels
    Returns uint8 [H, W, 3].
    """
    tiles = to_uint8(images)
    if tiles.shape[-1] == 1:
        tiles = np.repeat(tiles, 3, axis=-1)
    scale = scale or max(1, round(64 / tiles.shape[1]))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    rows = math.ceil(count / columns)
    margin = 10 + max((_font(height).getlength(name) for name in names), default=-10)
    left = int(margin)
    sheet = np.full(
        (rows * (height + gap) + gap, left + columns * (width + gap) + gap, 3), 255, np.uint8
    )
    for index, tile in enumerate(tiles):
        top = gap + index // columns * (height + gap)
        start = left + gap + index % columns * (width + gap)
        sheet[top : top + height, start : start + width] = tile
    if not names:
        return sheet
    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names[:rows]):
        middle = gap + row * (height + gap) + height // 2
        draw.text((5, middle), name, fill=(60, 60, 60), font=_font(height), anchor="lm")
    return np.asarray(picture)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Returns images as uint8: floats in [0, 1] are clipped, scaled and rounded to the nearest
    level.
    """
    if images.dtype == np.uint8:
        return images
    return np.round(np.clip(np.asarray(images, np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)


def save_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] (or floats in [0, 1]) as PNG; the file appears whole or not at all."""
    name = os.fspath(path)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    Image.fromarray(to_uint8(picture)).save(name + ".part", format="PNG")
    os.replace(name + ".part", name)


def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(10, min(18, height // 3)))
