"""RandAugment on the device: of each image a few changes, drawn from fifteen, of one strength.

Source: Cubuk et al. (arXiv 1909.13719); the changes and their ranges are those of timm's
"rand-mM-mstd0.5-inc1", by which the recipes of DeiT and its successors mean it: strengths are
normal about M of 10, each change is left out half of the time, and all grow with the strength.

An image is looked at in a loop of its own, because `jax.lax.switch` under `jax.vmap` makes all
fifteen of every image, and most are dear where memory is read out of order. Every device of a mesh
goes through its own images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.sharding import PartitionSpec

Array = jax.Array
Change = Callable[[Array, Array, Array], Array]

PROBABILITY, DEVIATION, MOST = 0.5, 0.5, 10.0
# What enters at the border: the mean colour of ImageNet, and its grey.
FILL, FILL_GREY = (124.0, 116.0, 104.0), 117.0
# Of a byte 16 high and 16 low values, so that a table is read by products of matrices.
_HALF = 16


def rand_augment(key: Array, image: Array, count: int, magnitude: float) -> Array:
    """Returns images [B, H, W, C] in [0, 1], each after `count` of `CHANGES`, rounded to bytes.

    magnitude  of 10. The same change may come twice.
    """
    kinds, chance, strength, side = jax.random.split(key, 4)
    shape = (len(image), count)
    drawn = jax.random.randint(kinds, shape, 1, len(CHANGES) + 1)
    kind = jnp.where(jax.random.bernoulli(chance, PROBABILITY, shape), drawn, 0)
    strengths = magnitude + DEVIATION * jax.random.normal(strength, shape)
    strengths = jnp.clip(strengths, 0, MOST) / MOST
    signs = jax.random.rademacher(side, shape, jnp.float32)
    levels = jnp.round(image * 255)
    return _on_each_device(apply, levels, kind, strengths, signs) / 255


def apply(levels: Array, kind: Array, strength: Array, sign: Array) -> Array:
    """Returns images, whole float32 levels from 0 to 255 [B, H, W, C], after changes [B, N].

    kind      0 for none, else 1 + a place in `CHANGES`
    strength  in [0, 1]
    sign      1 or -1: the direction of those that have two
    """
    branches = [lambda x, strength, sign: x, *CHANGES.values()]

    def change(x: Array, how: tuple[Array, Array, Array]) -> tuple[Array, None]:
        changed = jax.lax.switch(how[0], branches, x, *how[1:])
        # Pillow, by which the published recipes were trained, cuts off what is no whole level.
        return jnp.clip(jnp.floor(changed), 0, 255), None

    def one(image: tuple[Array, tuple[Array, Array, Array]]) -> Array:
        return jax.lax.scan(change, *image)[0]

    return jax.lax.map(one, (levels, (kind, strength, sign)))


def _on_each_device(run: Callable[..., Array], *arrays: Array) -> Array:
    # A loop over rows that lie on several devices would take every row to all of them.
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    axes = tuple(name for name in ("fsdp", "data") if sizes.get(name, 1) > 1)
    if not axes or len(arrays[0]) % math.prod(sizes[name] for name in axes):
        return run(*arrays)
    rows = PartitionSpec(axes)
    mapped = jax.shard_map(run, in_specs=rows, out_specs=rows, check_vma=False)
    return mapped(*arrays)


def _auto_contrast(x: Array, strength: Array, sign: Array) -> Array:
    low, high = x.min((0, 1)), x.max((0, 1))
    return jnp.where(high > low, (x - low) * (255 / jnp.maximum(high - low, 1)), x)


def _equalize(x: Array, strength: Array, sign: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.int32)
    high, low = (jax.nn.one_hot(part, _HALF) for part in jnp.divmod(flat, _HALF))
    counts = jnp.einsum("nch,ncl->chl", high, low).reshape(-1, _HALF**2).astype(jnp.int32)
    before = jnp.cumsum(counts, 1) - counts
    step = jnp.take_along_axis(before, flat.max(0)[:, None], 1) // 255
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    table = jnp.where(step == 0, jnp.arange(_HALF**2), table).astype(jnp.float32)
    rows = jnp.einsum("nch,chl->ncl", high, table.reshape(-1, _HALF, _HALF))
    return (rows * low).sum(-1).reshape(x.shape)


def _invert(x: Array, strength: Array, sign: Array) -> Array:
    return 255 - x


def _posterize(x: Array, strength: Array, sign: Array) -> Array:
    dropped = 4 + (strength * 4).astype(jnp.int32)
    return (x.astype(jnp.int32) >> dropped << dropped).astype(x.dtype)


def _solarize(x: Array, strength: Array, sign: Array) -> Array:
    return jnp.where(x < 256 - jnp.floor(strength * 256), x, 255 - x)


def _solarize_add(x: Array, strength: Array, sign: Array) -> Array:
    return jnp.where(x < 128, jnp.minimum(x + jnp.floor(strength * 110), 255), x)


def _color(x: Array, strength: Array, sign: Array) -> Array:
    return _away(x, _grey(x), strength, sign)


def _contrast(x: Array, strength: Array, sign: Array) -> Array:
    return _away(x, jnp.floor(_grey(x).mean() + 0.5), strength, sign)


def _brightness(x: Array, strength: Array, sign: Array) -> Array:
    return _away(x, jnp.zeros(()), strength, sign)


def _sharpness(x: Array, strength: Array, sign: Array) -> Array:
    around = jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "VALID")
    smooth = jnp.floor((around + 4 * x[1:-1, 1:-1]) / 13 + 0.5)
    return _away(x, x.at[1:-1, 1:-1].set(smooth), strength, sign)


def _rotate(x: Array, strength: Array, sign: Array) -> Array:
    angle = jnp.deg2rad(30 * strength * sign)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _moved(x, lambda x, y: (cos * x - sin * y, sin * x + cos * y), True)


def _shear_x(x: Array, strength: Array, sign: Array) -> Array:
    return _moved(x, lambda x, y: (x + 0.3 * strength * sign * y, y))


def _shear_y(x: Array, strength: Array, sign: Array) -> Array:
    return _moved(x, lambda x, y: (x, y + 0.3 * strength * sign * x))


def _translate_x(x: Array, strength: Array, sign: Array) -> Array:
    reach = 0.45 * strength * sign * x.shape[1]
    return _moved(x, lambda x, y: (x + reach, y))


def _translate_y(x: Array, strength: Array, sign: Array) -> Array:
    reach = 0.45 * strength * sign * x.shape[0]
    return _moved(x, lambda x, y: (x, y + reach))


CHANGES: dict[str, Change] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


def _away(x: Array, plain: Array, strength: Array, sign: Array) -> Array:
    """Towards an image without the property, or as far beyond."""
    factor = jnp.maximum(1 + 0.9 * strength * sign, 0.1)
    return plain + factor * (x - plain)


def _grey(x: Array) -> Array:
    # ITU-R 601 in units of 2^-16, as of Pillow; images of other channels have no colour.
    if x.shape[-1] != 3:
        return x
    weighed = (x * jnp.asarray([19595.0, 38470.0, 7471.0])).sum(-1, keepdims=True)
    return jnp.floor((weighed + 32768) / 65536)


def _moved(x: Array, source: Callable[..., tuple[Array, Array]], centred: bool = False) -> Array:
    """Bilinear; source: where a place (x, y) comes from, counted from the corner or the centre."""
    height, width, channels = x.shape
    middle = (height / 2, width / 2) if centred else (0.0, 0.0)
    down = jnp.arange(height)[:, None] + 0.5 - middle[0]
    right = jnp.arange(width)[None, :] + 0.5 - middle[1]
    columns, rows = source(right, down)
    columns, rows = jnp.broadcast_arrays(columns + middle[1], rows + middle[0])
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = [rows - 0.5, columns - 0.5]
    moved = jax.vmap(lambda plane: map_coordinates(plane, places, order=1, mode="nearest"), -1, -1)(
        x
    )
    fill = jnp.asarray(FILL if channels == 3 else (FILL_GREY,) * channels)
    return jnp.where(inside[..., None], moved, fill)
