"""Which tokens a masked model has to predict in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def random_mask(
    key: Array, batch: int, length: int, count: Array | int, among: Array | None = None
) -> Array:
    """Returns a mask of `count` positions per sequence, every such subset equally likely.

    count: int, scalar or [batch], may be traced; among: bool [batch, length], of these alone, at
    least `count` each; None: of all -> bool [batch, length].
    """
    noise = jax.random.uniform(key, (batch, length))
    if among is not None:
        # Beyond all that is drawn.
        noise = jnp.where(among, noise, 2.0)
    rank = jnp.argsort(jnp.argsort(noise, axis=-1), axis=-1)
    return rank < jnp.broadcast_to(count, (batch,))[:, None]


def uniform_mask(key: Array, batch: int, length: int) -> Array:
    """Draws a mask of 1 ... N positions, N = `length`, every number and then every subset equally
    likely: what one step of an order drawn at random leaves to be told.

    -> bool [batch, length], True = masked.
    Source: Autoregressive Diffusion Models (arXiv 2110.02037).
    """
    count_key, mask_key = jax.random.split(key)
    count = jax.random.randint(count_key, (batch,), 1, length + 1)
    return random_mask(mask_key, batch, length, count)


def cosine_count(key: Array, shape: tuple[int, ...], length: int) -> Array:
    """Draws numbers of tokens to mask: max(1, floor(N cos(pi s / 2N))), s uniform on 0..N-1.

    N = `length` -> int32 [*shape]; the mean is about 0.64 N.
    Source: MaskGIT (arXiv 2202.04200), section 3.1; BiGR (arXiv 2410.14672), code.
    """
    # A table in float64: in float32 the floor may fall one short of a whole number.
    ratio = np.cos(np.pi / 2 * np.arange(length) / length)
    counts = np.maximum(1, np.floor(length * ratio)).astype(np.int32)
    return jnp.asarray(counts)[jax.random.randint(key, shape, 0, length)]


def cosine_mask(key: Array, batch: int, length: int, *, per_batch: bool = False) -> Array:
    """Draws a training mask, its size by `cosine_count` and its positions uniformly.

    per_batch  one size for the whole batch, as the official code has it; otherwise one for every
               sequence, which gives the loss the same mean and less variance
    -> bool [batch, length], True = masked
    """
    count_key, mask_key = jax.random.split(key)
    count = cosine_count(count_key, () if per_batch else (batch,), length)
    return random_mask(mask_key, batch, length, count)


def cloze_count(length: int, rate: float, most: int) -> int:
    """Returns how many of `length` tokens are asked for: max(1, round(length * rate)), of which
    `most` at most.

    Source: BERT4Rec (arXiv 1904.06690), code; halves are rounded to the even number.
    """
    return min(most, max(1, round(length * rate)))


def cloze_mask(key: Array, real: Array, rate: float, most: int) -> Array:
    """Draws which of the real tokens are asked for, exactly `cloze_count` of each sequence and
    every such subset equally likely; none of a sequence that has no token.

    real: bool [batch, length], False = padding -> bool [batch, length], True = asked for
    """
    batch, length = real.shape
    # A table in float64: in float32 what is rounded may fall on the other side of a half.
    counts = [0, *(cloze_count(n, rate, most) for n in range(1, length + 1))]
    return random_mask(key, batch, length, jnp.asarray(counts)[real.sum(-1)], real)


def last_mask(real: Array) -> Array:
    """Returns where the last real token of each sequence stands, bool, as real: bool [batch,
    length].
    """
    after = jnp.flip(jnp.cumsum(jnp.flip(real, -1), -1), -1)
    return real & (after == 1)


def places_of(mask: Array, most: int) -> tuple[Array, Array]:
    """Returns the places where a mask is True, in order, in a number of slots that is fixed.

    mask: bool [batch, length], of each row at most `most` True
    -> places, int32 [batch, most], 0 in what is left over, and their weights, float32 [batch,
    most], 1 or 0
    """
    order = jnp.argsort(~mask, axis=-1, stable=True)[:, :most].astype(jnp.int32)
    used = jnp.take_along_axis(mask, order, axis=-1)
    return jnp.where(used, order, 0), used.astype(jnp.float32)
