"""Random boxes of images on the device: magnified to the whole image, or filled with noise."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Of the boxes drawn for an image the first that fits is taken.
TRIES = 10
ASPECT, ERASED_ASPECT = 4 / 3, 1 / 0.3
ERASED = (0.02, 1 / 3)
# Grey level, in [0, 1], of natural images, and its deviation: of the noise that erases.
MEAN, SPREAD = 0.45, 0.225


class Box(NamedTuple):
    """Boxes in images, one in each: the first row and column, and how many; int32 [batch]."""

    top: Array
    left: Array
    height: Array
    width: Array

    def inside(self, height: int, width: int) -> Array:
        """Returns what they cover of images of a size, bool [batch, height, width]."""
        rows = _within(self.top, self.height, height)
        return rows[:, :, None] & _within(self.left, self.width, width)[:, None, :]


def resized_crop(key: Array, image: Array, least: float) -> Array:
    """Magnifies a random box of each image [B, H, W, C] in [0, 1] to the whole; bicubic; clips.

    The box has a share of the area uniform in [least, 1], and sides whose ratio is log-uniform in
    [3/4, 4/3]; where `TRIES` of them do not fit, it is the largest in the middle that has such a
    ratio. Source: GoogLeNet (arXiv 1409.4842), section 6.
    """
    height, width = image.shape[1:3]
    box, found = draw(key, len(image), (height, width), (least, 1.0), ASPECT)
    rows = min(height, round(width * ASPECT))
    columns = min(width, round(height * ASPECT))
    middle = Box(*map(jnp.int32, ((height - rows) // 2, (width - columns) // 2, rows, columns)))
    return magnify(image, jax.tree.map(lambda x, y: jnp.where(found, x, y), box, middle))


def erase(key: Array, image: Array, probability: float) -> Array:
    """Fills a random box of some images [B, H, W, C] in [0, 1] with noise, pixel by pixel.

    The box has a share of the area uniform in `ERASED`, and sides whose ratio is log-uniform in
    [0.3, 1 / 0.3]; an image of which `TRIES` boxes do not fit stays. Source: Zhong et al. (arXiv
    1708.04896).
    """
    places, chance, noise = jax.random.split(key, 3)
    height, width = image.shape[1:3]
    box, found = draw(places, len(image), (height, width), ERASED, ERASED_ASPECT)
    hit = found & jax.random.bernoulli(chance, probability, found.shape)
    filled = box.inside(height, width) & hit[:, None, None]
    drawn = MEAN + SPREAD * jax.random.normal(noise, image.shape)
    return jnp.where(filled[..., None], jnp.clip(drawn, 0, 1), image)


def draw(
    key: Array, count: int, size: tuple[int, int], area: tuple[float, float], aspect: float
) -> tuple[Box, Array]:
    """Returns random boxes in images of a size, and whether one that fits was found, bool [count].

    area    least and largest share of the image, uniform
    aspect  largest ratio of the sides, either way; log-uniform
    """
    height, width = size
    share, slant, top, left = jax.random.split(key, 4)
    shares = jax.random.uniform(share, (count, TRIES), minval=area[0], maxval=area[1])
    slants = jax.random.uniform(slant, (count, TRIES), minval=-1.0, maxval=1.0)
    ratio = jnp.exp(slants * jnp.log(aspect))
    pixels = shares * (height * width)
    sides = jnp.stack([jnp.sqrt(pixels / ratio), jnp.sqrt(pixels * ratio)], -1)
    sides = jnp.round(sides).astype(jnp.int32)
    fits = ((sides >= 1) & (sides <= jnp.asarray(size))).all(-1)
    first = jnp.argmax(fits, 1)[:, None, None]
    rows, columns = jnp.take_along_axis(sides, first, 1)[:, 0].T
    rows, columns = jnp.minimum(rows, height), jnp.minimum(columns, width)
    box = Box(
        jax.random.randint(top, (count,), 0, height - rows + 1),
        jax.random.randint(left, (count,), 0, width - columns + 1),
        rows,
        columns,
    )
    return box, fits.any(1)


def magnify(image: Array, box: Box) -> Array:
    """Returns images [B, H, W, C] in [0, 1], each its box magnified to its whole size; clips.

    Bicubic (Keys 1981, a = -1/2) of what lies in the box alone, as two matrix products per image.
    """
    rows = _cubic(box.top, box.height, image.shape[1])
    columns = _cubic(box.left, box.width, image.shape[2])
    exact = jax.lax.Precision.HIGHEST
    tall = jnp.einsum("bij,bjkc->bikc", rows, image, precision=exact)
    return jnp.clip(jnp.einsum("blk,bikc->bilc", columns, tall, precision=exact), 0, 1)


def _cubic(first: Array, count: Array, size: int) -> Array:
    """Weights of the pixels of a side, of each pixel of the result: [batch, size, size]."""
    place = jnp.arange(size, dtype=jnp.float32)
    centre = first[:, None] + (place + 0.5) * count[:, None] / size - 0.5
    d = jnp.abs(centre[:, :, None] - place)
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))
    weights = jnp.where(_within(first, count, size)[:, None, :], weights, 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _within(first: Array, count: Array, size: int) -> Array:
    place = jnp.arange(size)
    return (place >= first[:, None]) & (place < (first + count)[:, None])
