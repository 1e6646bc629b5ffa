"""Images of any mode and size made square uint8 arrays of the wanted size and channels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

# Pillow would register its rarer formats when it first meets one: of several threads that do at
# once, some then take a good file for unreadable.
Image.init()


def square(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Returns the image as uint8 [size, size, channels]: upright, opaque on white, centre-cropped.

    Grey becomes three equal channels; colour becomes grey by the luma of ITU-R BT.601.
    """
    image = _opaque(ImageOps.exif_transpose(image))
    image = centre_crop(image.convert("RGB" if channels == 3 else "L"), size)
    return np.asarray(image, np.uint8).reshape(size, size, channels)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 when it converts; this scales it instead.
        return Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Returns the centre square after scaling the shorter side to `size`.

    Sides are halved with a box filter while both stay at least `size`, then scaled bicubically: the
    evaluation crop of ADM (Dhariwal and Nichol 2021, arXiv 2105.05233).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Returns images, uint8 [N, H, W, C] with C 1, 3 or 4, each made square by `square`."""
    if images.shape[1:] == (size, size, channels):
        return images
    out = np.empty((len(images), size, size, channels), np.uint8)
    for row, image in enumerate(images):
        out[row] = square(as_image(image), size, channels)
    return out


def as_image(image: np.ndarray) -> Image.Image:
    """Returns a uint8 [H, W, C] array, C 1, 3 or 4, as a Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def pad(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Returns square grey images, uint8 [N, h, h, 1], centred on black, h <= size."""
    before = (size - images.shape[1]) // 2
    out = np.zeros((len(images), size, size, channels), np.uint8)
    end = before + images.shape[1]
    out[:, before:end, before:end] = images
    return out
