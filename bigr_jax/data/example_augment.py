"""Random changes of images whose strength every example has of its own, such as one that is learnt.

Strengths are [batch] and may vary under jit: all shapes are static, and masks come of comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Holes that are drawn, of which an example uses its first few.
MOST_HOLES = 4
# From RGB to brightness and two axes of colour (Wikipedia's YIQ of 1953).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
NAMES = ("brightness", "contrast", "saturation", "hue", "scale", "length", "holes")


def example_augment(key: Array, images: Array, strengths: Mapping[str, Array]) -> Array:
    """Returns images, float [B, H, W, C], changed in the order of NAMES, as far as `strengths` has
    them: {name: [B]}.

    brightness, contrast, saturation  reach s of a factor uniform in 1 -+ s; clipped to [0, 1]
    hue       reach of a turn of the colours, of a whole circle
    scale     reach of a factor of all numbers, without clipping
    length, holes  see `cutout`; both or neither
    """
    # images: [batch, height, width, channels]
    keys = dict(zip(NAMES, jax.random.split(key, len(NAMES)), strict=True))

    def factor(name: str) -> Array:
        drawn = jax.random.uniform(keys[name], (len(images),), minval=-1.0, maxval=1.0)
        return 1 + strengths[name] * drawn

    if "brightness" in strengths:
        images = jnp.clip(images * _like(factor("brightness")), 0, 1)
    if "contrast" in strengths:
        mean = images.mean((1, 2, 3), keepdims=True)
        images = jnp.clip(mean + _like(factor("contrast")) * (images - mean), 0, 1)
    if "saturation" in strengths and images.shape[-1] == 3:
        grey = (images @ _YIQ[0].astype(np.float32))[..., None]
        images = jnp.clip(grey + _like(factor("saturation")) * (images - grey), 0, 1)
    if "hue" in strengths and images.shape[-1] == 3:
        images = jnp.clip(turned(images, 2 * jnp.pi * (factor("hue") - 1)), 0, 1)
    if "scale" in strengths:
        images = images * _like(factor("scale"))
    if "length" in strengths:
        images = cutout(keys["length"], images, strengths["length"], strengths["holes"])
    return images


def turned(images: Array, angles: Array) -> Array:
    """Returns images [B, H, W, 3] with their colours turned about grey by angles [B], in radians;
    what each shows in grey stays.
    """
    cos, sin, zero = jnp.cos(angles), jnp.sin(angles), jnp.zeros_like(angles)
    one = jnp.ones_like(angles)
    turn = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], -1).reshape(-1, 3, 3)
    matrix = jnp.asarray(np.linalg.inv(_YIQ), jnp.float32) @ turn @ jnp.asarray(_YIQ, jnp.float32)
    return jnp.einsum("bij,bhwj->bhwi", matrix, images)


def cutout(key: Array, images: Array, length: Array, holes: Array) -> Array:
    """Returns images [B, H, W, C] with squares of zeros, `holes` [B] of them, at most MOST_HOLES,
    with sides of `length` [B] pixels.

    Centres are uniform over the pixels, and what lies outside of an image is cut off (DeVries and
    Taylor, arXiv 1708.04552).
    """
    batch, height, width, _ = images.shape
    top, left = length // 2, (length + 1) // 2
    open_ = jnp.ones((batch, height, width), bool)
    y_key, x_key = jax.random.split(key)
    at_y = jax.random.randint(y_key, (batch, MOST_HOLES), 0, height)
    at_x = jax.random.randint(x_key, (batch, MOST_HOLES), 0, width)
    for hole in range(MOST_HOLES):
        inside = []
        for size, at in ((height, at_y), (width, at_x)):
            offset = jnp.arange(size) - at[:, hole, None]
            inside.append((offset >= -top[:, None]) & (offset < left[:, None]))
        used = (hole < holes)[:, None, None]
        open_ &= ~(used & inside[0][:, :, None] & inside[1][:, None, :])
    return jnp.where(open_[..., None], images, 0)


def _like(factors: Array) -> Array:
    return factors[:, None, None, None]
