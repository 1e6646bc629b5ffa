"""Grids of images as PNG files: what people look at first."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bigr_jax import files


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


def marked(image: np.ndarray, regions: int, query: int, chosen: Sequence[int]) -> np.ndarray:
    """Returns an image, uint8 [h, w, 1 or 3], four times as large, with frames around some of its
    regions: a white one around `query`, orange ones around the `chosen`, the others dimmed.

    regions  along either side; they are counted row by row
    Returns uint8 [H, W, 3].
    """
    large = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(4, axis=0).repeat(4, axis=1)
    height, width = (side / regions for side in large.shape[:2])

    def box(region: int) -> tuple[int, int, int, int]:
        row, column = divmod(int(region), regions)
        left, top = round(column * width), round(row * height)
        return left, top, round((column + 1) * width) - 1, round((row + 1) * height) - 1

    shown = np.full(large.shape[:2], 0.45)
    for left, top, right, bottom in map(box, (query, *chosen)):
        shown[top : bottom + 1, left : right + 1] = 1.0
    picture = Image.fromarray(np.round(large * shown[..., None]).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for region in chosen:
        draw.rectangle(box(region), outline=(255, 150, 0), width=3)
    draw.rectangle(box(query), outline=(255, 255, 255), width=3)
    return np.asarray(picture)


def written(lines: Sequence[str], size: int = 18) -> np.ndarray:
    """Returns lines of text as a picture, uint8 [H, W, 3]; size: pixels of a letter's height."""
    font = ImageFont.load_default(size=size)
    width = max((font.getlength(line) for line in lines), default=0)
    step = round(size * 1.4)
    picture = Image.new("RGB", (int(width) + 2 * size, step * len(lines) + size), "white")
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        draw.text((size, size // 2 + row * step), line, fill=(40, 40, 40), font=font)
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
    with files.whole(name) as part:
        Image.fromarray(to_uint8(picture)).save(part, format="PNG")


def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(10, min(18, height // 3)))
