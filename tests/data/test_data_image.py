"""Images of every mode and size become square uint8 arrays."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data.image import centre_crop, fit, pad, square

rng = np.random.default_rng(0)


def cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def cubic_matrix(old: int, new: int) -> np.ndarray:
    """Rows of the bicubic (a = -1/2) resampling, widened when it makes the image smaller."""
    scale = old / new
    width = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    weights = cubic((np.arange(old) + 0.5 - centres[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


def resize(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Along the rows first, each direction rounded to 0..255: a bicubic filter overshoots."""
    image = np.clip(np.floor(image @ columns.T + 0.5), 0, 255)
    return np.clip(np.floor(rows @ image + 0.5), 0, 255)


def crop_oracle(image: np.ndarray, size: int) -> np.ndarray:
    image = image.astype(np.float64)
    while min(image.shape) >= 2 * size:
        rows, columns = (box_matrix(side, side // 2) for side in image.shape)
        image = resize(image, rows, columns)
    scale = size / min(image.shape)
    height, width = (round(side * scale) for side in image.shape)
    image = resize(image, cubic_matrix(image.shape[0], height), cubic_matrix(image.shape[1], width))
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def box_matrix(old: int, new: int) -> np.ndarray:
    """Rows average the pixels whose centres lie within the new pixel."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    inside = np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.where(inside < 0.5, 1.0, 0.0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8), 16), ((11, 17), 9), ((16, 8), 8), ((64, 40), 10), ((1, 3), 1)]
)
def test_centre_crop_is_box_halving_then_bicubic(shape: tuple[int, int], size: int) -> None:
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    cropped = np.asarray(centre_crop(Image.fromarray(pixels), size), np.float64)
    assert cropped.shape == (size, size)
    # Pillow's weights are fixed-point numbers: now and then a rounding falls the other way.
    np.testing.assert_allclose(cropped, crop_oracle(pixels, size), atol=1.0)


def scaled(side: int, numerator: int, denominator: int) -> int:
    """side * numerator / denominator, rounded as ADM does: a half to the even number."""
    twice = 2 * side * numerator
    whole, rest = divmod(twice + denominator, 2 * denominator)
    return whole - (rest == 0 and whole % 2)


def geometry(width: int, height: int, size: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """The sizes that ADM's rule passes through, and the corner of its crop, in whole numbers."""
    sizes = [(width, height)]
    while min(sizes[-1]) >= 2 * size:
        sizes.append((sizes[-1][0] >> 1, sizes[-1][1] >> 1))
    short = min(sizes[-1])
    sizes.append((scaled(sizes[-1][0], size, short), scaled(sizes[-1][1], size, short)))
    return sizes, ((sizes[-1][0] - size) // 2, (sizes[-1][1] - size) // 2)


# In the last six, the long side comes to half a pixel.
SIZES = [(1, 1, 1), (5, 7, 5), (375, 500, 32), (499, 333, 31), (31, 63, 16), (64, 129, 16)]
SIZES += [(16, 24, 9), (16, 40, 9), (40, 16, 9), (16, 56, 9), (8, 12, 7), (8, 20, 7)]


@pytest.mark.parametrize(("width", "height", "size"), SIZES)
def test_every_size_on_the_way_is_that_of_the_published_rule(
    width: int, height: int, size: int
) -> None:
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    (_, *halves, last), (left, top) = geometry(width, height, size)
    image = Image.fromarray(pixels)
    for half in halves:
        image = image.resize(half, Image.Resampling.BOX)
    whole = np.asarray(image.resize(last, Image.Resampling.BICUBIC))
    expected = whole[top : top + size, left : left + size]
    assert expected.shape == (size, size, 3)
    np.testing.assert_array_equal(square(Image.fromarray(pixels), size, 3), expected)


def test_halves_are_rounded_to_even_numbers() -> None:
    assert [scaled(side, 9, 16) for side in (24, 40, 56)] == [14, 22, 32]
    assert geometry(16, 40, 9) == ([(16, 40), (9, 22)], (0, 6))
    assert geometry(375, 500, 32) == (
        [(375, 500), (187, 250), (93, 125), (46, 62), (32, 43)],
        (0, 5),
    )


def test_an_image_of_the_wanted_size_is_unchanged() -> None:
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square(Image.fromarray(pixels), 6, 3), pixels)


def test_transparency_shows_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 128
    opaque = square(Image.fromarray(rgba), 4, 3)[0, 0]
    np.testing.assert_allclose(opaque, 255 + (np.array([200, 0, 0]) - 255) * 128 / 255, atol=1)
    palette = Image.fromarray(rgba[..., :3]).quantize(2)
    palette.info["transparency"] = palette.getpixel((0, 0))
    np.testing.assert_array_equal(square(palette, 4, 3), np.full((4, 4, 3), 255))
    grey = Image.fromarray(np.zeros((4, 4, 2), np.uint8), mode="LA")
    np.testing.assert_array_equal(square(grey, 4, 1), np.full((4, 4, 1), 255))


def test_grey_is_repeated_and_colour_is_weighed() -> None:
    grey = rng.integers(0, 256, (5, 5), dtype=np.uint8)
    np.testing.assert_array_equal(
        square(Image.fromarray(grey), 5, 3), np.repeat(grey[..., None], 3, axis=-1)
    )
    colour = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    luma = colour.astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(square(Image.fromarray(colour), 5, 1)[..., 0], luma, atol=1)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.array([[0, 257], [32896, 65535]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    with Image.open(stream) as image:
        np.testing.assert_array_equal(square(image, 2, 1)[..., 0], [[0, 1], [128, 255]])


def test_a_photograph_is_turned_upright() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    with Image.open(stream) as image:
        np.testing.assert_array_equal(square(image, 4, 3), np.rot90(pixels, -1))


def test_fit_and_pad() -> None:
    images = rng.integers(0, 256, (3, 6, 6, 1), dtype=np.uint8)
    assert fit(images, 6, 1) is images
    smaller = fit(images, 4, 3)
    assert smaller.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(smaller[1], square(Image.fromarray(images[1, ..., 0]), 4, 3))
    for size in (6, 9, 10):
        padded, before = pad(images, size, 3), (size - 6) // 2
        inside = padded[:, before : before + 6, before : before + 6]
        np.testing.assert_array_equal(inside, np.repeat(images, 3, axis=-1))
        assert padded.sum() == 3 * images.sum()
