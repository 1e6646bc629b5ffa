"""Which tokens a masked model has to predict in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def random_mask(key: Array, batch: int, length: int, count: Array | int) -> Array:
    """Returns a mask of `count` positions per sequence, every such subset equally likely.

    count: int, scalar or [batch], may be traced -> bool [batch, length].
    """
    noise = jax.random.uniform(key, (batch, length))
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
