"""Random changes of image batches on the device, as pure functions of an explicit key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from bigr_jax.data.boxes import erase, resized_crop
from bigr_jax.data.rand_augment import rand_augment
from bigr_jax.errors import UserError, one_of

Array = jax.Array


def to_float(image: Array) -> Array:
    """Returns uint8 images, values 0..255, as float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255


def flip(key: Array, image: Array) -> Array:
    """Mirrors each image [B, H, W, C] left to right with probability one half."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(image), 1, 1, 1))
    return jnp.where(mirrored, image[:, :, ::-1], image)


def shift(key: Array, image: Array, reach: int, mode: str = "constant") -> Array:
    """Moves each image [B, H, W, C] by up to `reach` whole pixels along either axis.

    What enters at the border is zero, or as jnp.pad's `mode` says.
    """
    padded = jnp.pad(image, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (len(image), 2), 0, 2 * reach + 1)

    def window(one: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(one, (corner[0], corner[1], 0), image.shape[1:])

    return jax.vmap(window)(padded, corners)


def rotate(key: Array, image: Array, degrees: float) -> Array:
    """Turns each image [B, H, W, C] about its centre by an angle uniform in [-degrees, degrees]."""
    angles = jax.random.uniform(key, (len(image),), minval=-degrees, maxval=degrees)
    return warp(image, jnp.deg2rad(angles), jnp.ones(len(image)))


def zoom(key: Array, image: Array, reach: float) -> Array:
    """Magnifies each image [B, H, W, C] about its centre by a factor uniform in 1 -+ reach."""
    factors = jax.random.uniform(key, (len(image),), minval=1 - reach, maxval=1 + reach)
    return warp(image, jnp.zeros(len(image)), factors)


def warp(image: Array, angles: Array, factors: Array) -> Array:
    """Returns images [B, H, W, C] turned anticlockwise by angles [B] and magnified by factors [B].

    Angles are in radians. Bilinear between pixel centres; what lies outside the image is zero.
    """
    height, width = image.shape[1:3]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - middle_y
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - middle_x

    def one(picture: Array, angle: Array, factor: Array) -> Array:
        cos, sin = jnp.cos(angle) / factor, jnp.sin(angle) / factor
        places = [cos * y + sin * x + middle_y, cos * x - sin * y + middle_x]
        plane = functools.partial(map_coordinates, coordinates=places, order=1)
        return jax.vmap(plane, in_axes=-1, out_axes=-1)(picture)

    return jax.vmap(one)(image, angles, factors)


def brightness(key: Array, image: Array, reach: float) -> Array:
    """Adds to each image [B, H, W, C] in [0, 1] one number uniform in [-reach, reach]; clips."""
    added = jax.random.uniform(key, (len(image), 1, 1, 1), minval=-reach, maxval=reach)
    return jnp.clip(image + added, 0, 1)


def contrast(key: Array, image: Array, reach: float) -> Array:
    """Scales each image [B, H, W, C] in [0, 1] about its mean by a factor in 1 -+ reach; clips."""
    mean = image.mean((1, 2, 3), keepdims=True)
    factors = jax.random.uniform(key, mean.shape, minval=1 - reach, maxval=1 + reach)
    return jnp.clip(mean + factors * (image - mean), 0, 1)


class _Number(NamedTuple):
    most: float
    read: type = float

    def __str__(self) -> str:
        kind = "an integer" if self.read is int else "a number"
        return f"{kind} from 0 to {self.most:g}"


class _Op(NamedTuple):
    apply: Callable[..., Array]
    takes: tuple[_Number, ...] = ()


OPS: dict[str, _Op] = {
    "flip": _Op(flip),
    "shift": _Op(shift, (_Number(1024, int),)),
    "crop": _Op(functools.partial(shift, mode="reflect"), (_Number(1024, int),)),
    "rotate": _Op(rotate, (_Number(180),)),
    "zoom": _Op(zoom, (_Number(0.9),)),
    "brightness": _Op(brightness, (_Number(1),)),
    "contrast": _Op(contrast, (_Number(1),)),
    "resized_crop": _Op(resized_crop, (_Number(1),)),
    "randaugment": _Op(rand_augment, (_Number(16, int), _Number(10))),
    "erase": _Op(erase, (_Number(1),)),
}


def augment(key: Array, image: Array, spec: str) -> Array:
    """Applies the changes that a config names, such as "flip,shift:2,rotate:10", in order.

    image  uint8, or float in [0, 1], [B, H, W, C]; the result has its type and shape
    spec   "" (none), or items of: flip; shift:PIXELS (zeros enter); crop:PIXELS (reflections
           enter); rotate:DEGREES; zoom:FRACTION; brightness:FRACTION; contrast:FRACTION;
           resized_crop:LEAST_AREA; randaugment:COUNT:MAGNITUDE (of 10); erase:PROBABILITY

    Raises UserError, naming data.augment, where an item is unknown or its number out of range.
    """
    steps = parse(spec)
    if not steps:
        return image
    out = to_float(image) if image.dtype == jnp.uint8 else image
    for position, (name, numbers) in enumerate(steps):
        out = OPS[name].apply(jax.random.fold_in(key, position), out, *numbers)
    if image.dtype == jnp.uint8:
        return jnp.round(jnp.clip(out, 0, 1) * 255).astype(jnp.uint8)
    return out.astype(image.dtype)


def parse(spec: str) -> list[tuple[str, tuple[float, ...]]]:
    """Returns the (name, numbers) of each item of a data.augment string; UserError as `augment`."""
    items = [item.strip().partition(":") for item in spec.split(",") if item.strip()]
    return [(name, _numbers(name, colon, text)) for name, colon, text in items]


def _numbers(name: str, colon: str, text: str) -> tuple[float, ...]:
    if name not in OPS:
        raise one_of("data.augment", name, OPS)
    takes = OPS[name].takes
    if not takes:
        if colon:
            raise UserError(f"data.augment: {name}:{text} takes no number; legal: {name}")
        return ()
    try:
        numbers = [taken.read(part) for taken, part in zip(takes, text.split(":"), strict=True)]
    except ValueError:
        numbers = [-1]
    if not all(0 <= number <= taken.most for number, taken in zip(numbers, takes, strict=False)):
        raise UserError(
            f"data.augment: {name}{colon}{text} is not legal; expected {name}: and "
            f"{' : and '.join(map(str, takes))}"
        )
    return tuple(numbers)
