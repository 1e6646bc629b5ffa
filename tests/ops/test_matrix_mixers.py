"""Matrices and their products against float64, entry by entry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.ops import matrix_mixers as ops
from bigr_jax.ops.attention import softmax_attention

HEADS, DIM, CHANNELS = 2, 3, 4
MASK = np.array([[1, 1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool)


def entries(kind: str, arguments: tuple[Any, ...], mask: Any = None) -> np.ndarray:
    """M as the module has it, float64 [b, h, l, l]."""
    lags = query = arguments[0]
    if kind == "toeplitz":
        b, length = len(lags), (lags.shape[-1] + 1) // 2
    else:
        key, (b, length) = arguments[1], query.shape[:2]
    found = np.zeros((b, HEADS, length, length))
    for n, h, i, j in np.ndindex(*found.shape):
        if kind == "toeplitz":
            found[n, h, i, j] = lags[n, h, i - j + length - 1]
            continue
        q, k = query[n, i, h], key[n, j, h]
        if kind == "vandermonde":
            turn = 2 * np.pi * 1e-3
            found[n, h, i, j] = (np.cos(turn * q * j) - np.cos(turn * k * i)).sum()
        elif kind == "cauchy":
            found[n, h, i, j] = (1 / (np.exp(q) + np.exp(k) + arguments[2] + 1e-8)).sum()
        elif kind == "attention":
            found[n, h, i, j] = np.exp(q @ k / np.sqrt(DIM))
        else:
            found[n, h, i, j] = q @ k
    if kind in ("attention", "linear_attention"):
        if mask is not None:
            found *= mask[:, None, None, :]
        found /= found.sum(-1, keepdims=True)
    return found


def made(kind: str, b: int, length: int) -> tuple[Any, ...]:
    draw = np.random.default_rng(length)
    if kind == "toeplitz":
        return (draw.normal(size=(b, HEADS, 2 * length - 1)),)
    pair = draw.normal(size=(2, b, length, HEADS, DIM))
    if kind == "vandermonde":
        pair *= 100
    if kind == "linear_attention":
        pair = np.abs(pair) + 0.1
    return (*pair, np.float64(0.7)) if kind == "cauchy" else tuple(pair)


# (matrix, product)
FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "toeplitz": (ops.toeplitz_matrix, lambda a, x, m: ops.toeplitz(*a, x)),
    "vandermonde": (
        ops.vandermonde_matrix,
        lambda a, x, m: ops.times(ops.vandermonde_matrix(*a), x),
    ),
    "cauchy": (ops.cauchy_matrix, lambda a, x, m: ops.times(ops.cauchy_matrix(*a), x)),
    "low_rank": (ops.low_rank_matrix, lambda a, x, m: ops.low_rank(*a, x)),
    "attention": (ops.attention_matrix, lambda a, x, m: softmax_attention(*a, x, key_mask=m)),
    "linear_attention": (None, lambda a, x, m: ops.linear_attention(*a, x, key_mask=m)),
}


@pytest.mark.parametrize("shape", [(2, 7), (1, 1)])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_values_and_gradients(kind: str, shape: tuple[int, int]) -> None:
    matrix, product = FUNCTIONS[kind]
    arguments, draw = made(kind, *shape), np.random.default_rng(5)
    x, weight = draw.normal(size=(2, *shape, HEADS, CHANNELS))
    masked = "attention" in kind and shape == MASK.shape
    mask = MASK if masked else None

    def run(arguments: Any, x: Any) -> Any:
        def loss(arguments: Any, x: Any) -> Any:
            y = product(arguments, x, mask)
            return (y * weight).sum(), y

        slopes, y = jax.grad(loss, (0, 1), has_aux=True)(arguments, x)
        extra = (mask,) if masked else ()
        return y, slopes, None if matrix is None else matrix(*arguments, *extra)

    y, slopes, found = jax.jit(run)(*jax.tree.map(jnp.float32, (arguments, x)))
    wanted = entries(kind, arguments, mask)
    if found is not None:
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
    oracle = lambda a, x: np.einsum("bhij,bjhp->bihp", entries(kind, a, mask), x)  # noqa: E731
    np.testing.assert_allclose(y, oracle(arguments, x), rtol=5e-6, atol=5e-6)
    leaves, tree = jax.tree.flatten((arguments, x))
    for i, slope in enumerate(jax.tree.leaves(slopes)):
        way, ends = draw.normal(size=np.shape(leaves[i])), []
        for sign in (1e-5, -1e-5):
            moved = [leaf + sign * way if n == i else leaf for n, leaf in enumerate(leaves)]
            ends.append((oracle(*jax.tree.unflatten(tree, moved)) * weight).sum())
        found = (slope * way).sum()
        np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-4)


def test_one_matrix_serves_a_batch() -> None:
    pair, x = made("low_rank", 1, 7), np.random.default_rng(0).normal(size=(2, 7, HEADS, CHANNELS))
    wanted = np.einsum("hij,bjhp->bihp", entries("low_rank", pair)[0], x)
    pair, x = jax.tree.map(jnp.float32, (pair, x))
    np.testing.assert_allclose(ops.low_rank(*pair, x), wanted, atol=1e-5)
    np.testing.assert_allclose(ops.times(ops.low_rank_matrix(*pair), x), wanted, atol=1e-5)


@pytest.mark.parametrize("fill", [-200.0, 100.0])
def test_large_exponents_leave_numbers(fill: float) -> None:
    pair = (jnp.full((1, 2, HEADS, DIM), fill),) * 2
    slopes = jax.jit(jax.grad(lambda *pair: ops.cauchy_matrix(*pair, 1.0).sum(), (0, 1)))(*pair)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_rotations_stay_out_of_the_divisor() -> None:
    query, key = made("linear_attention", 2, 7)
    draw = np.random.default_rng(1)
    turned, x = draw.normal(size=(2, *query.shape)), draw.normal(size=(2, 7, HEADS, CHANNELS))
    weights = entries("low_rank", tuple(turned))
    weights /= entries("low_rank", (query, key)).sum(-1, keepdims=True)
    found = ops.linear_attention(
        *map(jnp.float32, (query, key, x)), turned=tuple(map(jnp.float32, turned))
    )
    np.testing.assert_allclose(found, np.einsum("bhij,bjhp->bihp", weights, x), atol=1e-5)


def test_the_transform_of_fourier() -> None:
    x = np.random.default_rng(2).normal(size=(2, 7, 6))
    wanted = np.fft.fft2(x, norm="ortho").real
    np.testing.assert_allclose(ops.fourier(jnp.float32(x)), wanted, atol=2e-6)
    found = np.asarray(jax.jit(ops.fourier)(jnp.float32(x), MASK))
    assert not found[~MASK].any()
    for n in range(2):
        alone = np.fft.fft2(x[n, MASK[n]], norm="ortho").real
        np.testing.assert_allclose(found[n, MASK[n]], alone, atol=2e-6)


def test_lags_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"4 lags; a sequence of l tokens has 2l - 1"):
        ops.toeplitz_matrix(jnp.zeros((1, 1, 4)))
    with pytest.raises(ValueError, match="lags of 2 tokens, x of 3"):
        ops.toeplitz(jnp.zeros((1, 1, 3)), jnp.zeros((1, 3, 1, 1)))
