"""Matrices that mix the tokens of a sequence, and their products where there is a faster way.

A head's channels are all mixed by one matrix M [l, l]: y_i = sum of M_ij x_j over j. Below: b
batch, or 1 where a matrix is that of every sequence, l length, h heads, p channels of a head, d
channels of queries and keys. Matrices are float32, their products in the type of x with float32
accumulation.
Source: Hydra (arXiv 2407.09941), Table 1 and appendix.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

Array = jax.Array

# e^40 has a square in float32, which the derivative of its reciprocal needs.
_LARGEST = 40.0


def times(matrix: Array, x: Array) -> Array:
    """Returns M x, [b, l, h, p], as x; matrix: [b or 1, h or 1, l, l]."""
    whole = (len(x), x.shape[2], *matrix.shape[2:])
    matrix = jnp.broadcast_to(matrix, whole).astype(x.dtype)
    y = jnp.einsum("bhij,bjhp->bihp", matrix, x, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def toeplitz_matrix(lags: Array) -> Array:
    """Returns M_ij = w_{i-j}, [b, h, l, l]; lags: [b, h, 2l-1], w_k at the index k + l - 1."""
    length = _length(lags)
    steps = jnp.arange(length)
    return lags.astype(jnp.float32)[..., steps[:, None] - steps[None, :] + length - 1]


def toeplitz(lags: Array, x: Array) -> Array:
    """Returns the same times x, [b, l, h, p], as x, in l log l steps: by Fourier transforms, which
    are float32. Raises ValueError where lags and x are not of one length.
    """
    length = _length(lags)
    if x.shape[1] != length:
        raise ValueError(f"lags of {length} tokens, x of {x.shape[1]}")
    # On a circle of 2l places, lag k stands at k and lag -k at 2l - k.
    lags = lags.astype(jnp.float32)
    circle = jnp.concatenate(
        [lags[..., length - 1 :], jnp.zeros_like(lags[..., :1]), lags[..., : length - 1]], axis=-1
    )
    rows = jnp.moveaxis(x.astype(jnp.float32), 1, -1)  # b h p l
    product = jnp.fft.rfft(circle)[:, :, None] * jnp.fft.rfft(rows, n=2 * length)
    y = jnp.fft.irfft(product, n=2 * length)[..., :length]
    return jnp.moveaxis(y, -1, 1).astype(x.dtype)


def cosine_matrix(length: int, size: int) -> Array:
    """Returns the real part of the Fourier matrix of `size`, its leading part [1, 1, l, l]: M_ij =
    cos(2 pi i j / size).
    """
    steps = jnp.arange(length)
    # Turns are counted in whole numbers: a large angle has no digits left.
    return jnp.cos(2 * math.pi * (steps[:, None] * steps % size / size))[None, None]


def vandermonde_matrix(query: Array, key: Array) -> Array:
    """Returns M_ij = sum over d of cos(2 pi q_id j / 1000) - cos(2 pi k_jd i / 1000), [b, h, l, l].

    query and key: [b, l, h, d]
    """
    rows, columns = (_cosine_sums(2e-3 * math.pi * v.astype(jnp.float32)) for v in (query, key))
    return rows - jnp.swapaxes(columns, -1, -2)


def _cosine_sums(angle: Array) -> Array:
    """Returns the sum over d of cos(angle_id j), [b, h, l, l]; angle: [b, l, h, d].

    With j = n a + c it is a product of matrices, by cos(x + y) = cos x cos y - sin x sin y, and
    needs cosines and sines of some 2 sqrt(l) multiples, not of l.
    """
    length = angle.shape[1]
    each = math.isqrt(length - 1) + 1
    coarse, fine = (
        jnp.swapaxes(angle, 1, 2)[..., None] * steps.astype(jnp.float32)
        for steps in (jnp.arange(0, length, each), jnp.arange(each))
    )
    # In float32 on a TPU too, whose default would round the cosines to bfloat16.
    product = functools.partial(jnp.einsum, "bhida,bhidc->bhiac", precision="highest")
    sums = product(jnp.cos(coarse), jnp.cos(fine)) - product(jnp.sin(coarse), jnp.sin(fine))
    return sums.reshape(*sums.shape[:3], -1)[..., :length]


@jax.checkpoint
def cauchy_matrix(query: Array, key: Array, offset: Array | float = 0.0) -> Array:
    """Returns M_ij = sum over d of 1 / (e^{q_id} + e^{k_jd} + offset + 1e-8), [b, h, l, l].

    query and key: [b, l, h, d], offset: a number
    """
    query, key = (
        jnp.exp(jnp.minimum(jnp.swapaxes(v.astype(jnp.float32), 1, 2), _LARGEST))
        for v in (query, key)
    )
    return (1 / (query[:, :, :, None] + key[:, :, None] + offset + 1e-8)).sum(axis=-1)


def low_rank_matrix(query: Array, key: Array) -> Array:
    """Returns M_ij = q_i k_j, [b, h, l, l]; query and key: [b, l, h, d]."""
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    return jnp.einsum("bihd,bjhd->bhij", query, key)


def low_rank(query: Array, key: Array, x: Array) -> Array:
    """Returns the same times x, [b, l, h, p], as x, in time linear in l: the keys first."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    shape = (len(x), *query.shape[1:])
    query, key = (jnp.broadcast_to(v.astype(x.dtype), shape) for v in (query, key))
    state = product("bjhd,bjhp->bhdp", key, x)
    return product("bihd,bhdp->bihp", query, state.astype(x.dtype)).astype(x.dtype)


def attention_matrix(query: Array, key: Array, key_mask: Array | None = None) -> Array:
    """Returns M_ij = softmax over j of q_i k_j / sqrt(d), [b, h, l, l].

    query and key: [b, l, h, d], key_mask: bool [b, l], False = has no weight. The product is
    `ops.attention`.
    """
    logits = low_rank_matrix(query, key) / math.sqrt(query.shape[-1])
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_mask: Array | None = None,
    turned: tuple[Array, Array] | None = None,
) -> Array:
    """Returns sum over j of q_i k_j v_j, divided by the sum of q_i k_j, [b, l, h, p], as value.

    query and key: [b, l, h, d], positive features, such as elu + 1, key_mask: bool [b, l], turned:
    query and key after the rotation of their positions, which the divisor does without.
    Sources: Katharopoulos et al. (arXiv 2006.16236), equation 6; RoFormer (arXiv 2104.09864),
    equation 19.
    """
    if key_mask is not None:
        value = jnp.where(key_mask[..., None, None], value, 0)
        key = jnp.where(key_mask[..., None, None], key, 0)
    total = key.astype(jnp.float32).sum(axis=1)
    weight = jnp.einsum("bihd,bhd->bih", query.astype(jnp.float32), total)
    above = low_rank(*((query, key) if turned is None else turned), value)
    return (above / (weight[..., None] + 1e-6)).astype(value.dtype)


def fourier(x: Array, mask: Array | None = None) -> Array:
    """Returns the real part of the Fourier transform over sequence and channels, orthonormal.

    x: [b, l, channels], mask: bool [b, l] -> float32, as x. Where a mask is given, the transform of
    a sequence is that of its tokens alone, in l^2 steps instead of l log l; zeros at the padding.
    Source: FNet (arXiv 2105.03824), equation 3, which leaves the factor out.
    """
    inner = jnp.fft.fft(x.astype(jnp.float32), axis=2, norm="ortho")
    if mask is None:
        return jnp.fft.fft(inner, axis=1, norm="ortho").real
    count = jnp.maximum(mask.sum(axis=1), 1)[:, None, None]
    place = jnp.cumsum(mask, axis=1) - 1
    angle = 2 * math.pi * (place[:, :, None] * place[:, None, :] % count / count)
    seen = (mask[:, :, None] & mask[:, None, :]) / jnp.sqrt(count)
    product = functools.partial(jnp.einsum, "bij,bjc->bic")
    clean = jnp.where(mask[..., None], inner, 0)
    return product(jnp.cos(angle) * seen, clean.real) + product(jnp.sin(angle) * seen, clean.imag)


def _length(lags: Array) -> int:
    if lags.shape[-1] % 2 == 0:
        raise ValueError(f"{lags.shape[-1]} lags; a sequence of l tokens has 2l - 1")
    return (lags.shape[-1] + 1) // 2
