"""Images of a batch mixed with one another, and what is asked of them: mixup and cutmix.

Sources: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899). One draw serves a whole batch, as in
the recipes of DeiT and its successors, and row i is mixed with row B - 1 - i: of the global batch,
or of a part of it whose gradients are accumulated, so that it is mixed alike on one device and on
many.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError

Array = jax.Array


def shares(
    key: Array, size: tuple[int, int], mixup: float = 0.0, cutmix: float = 0.0
) -> Array | None:
    """Returns what stays of every pixel of every image, float32 [height, width] or [1, 1].

    size    of the images
    mixup   a of Beta(a, a), of which the share of an image in its sum with another is drawn
    cutmix  a of Beta(a, a), of which the share of an image around a box that shows another is drawn

    0 leaves either out, None says that nothing is mixed; of both each is taken half of the time.
    Raises UserError, naming model.mixup or model.cutmix, for a negative number.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not value >= 0:
            raise UserError(f"model.{name}={value} must not be negative; 0 leaves it out")
    choice, summed, cut = jax.random.split(key, 3)
    if mixup and cutmix:
        summing = jax.random.bernoulli(choice)
        return jnp.where(summing, _summed(summed, mixup), _cut(cut, cutmix, size))
    if mixup:
        return _summed(summed, mixup)
    return _cut(cut, cutmix, size) if cutmix else None


def mixed(rows: Array, share: Array) -> Array:
    """Returns the rows of a batch, each mixed with that at its place counted from the end.

    rows   float [batch, ...]: images, or with `share.mean()` what is asked of them
    share  of a row itself, whose shape broadcasts with theirs
    """
    return rows * share + rows[::-1] * (1 - share)


def _summed(key: Array, a: float) -> Array:
    return jax.random.beta(key, a, a, (1, 1))


def _cut(key: Array, a: float, size: tuple[int, int]) -> Array:
    """The box has the sides of an image times the root of its share, and a centre anywhere, so that
    a part of it may lie outside.
    """
    amount, down, right = jax.random.split(key, 3)
    ratio = jnp.sqrt(1 - jax.random.beta(amount, a, a))

    def near(key: Array, side: int) -> Array:
        half = jnp.floor(ratio * side).astype(jnp.int32) // 2
        place = jnp.arange(side) - jax.random.randint(key, (), 0, side)
        return (place >= -half) & (place < half)

    covered = near(down, size[0])[:, None] & near(right, size[1])
    return 1.0 - covered.astype(jnp.float32)
