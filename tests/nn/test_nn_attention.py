from __future__ import annotations

import jax
import numpy as np
import pytest

from bigr_jax.nn.attention import Attention
from bigr_jax.ops.rope import grid_table

WIDTH, HEADS = 8, 2


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def oracle(u, qkv, out, mask=None, table=None):
    """Attention one head and one query at a time, in float64."""
    y = np.zeros(u.shape)
    for b, h in np.ndindex(len(u), HEADS):
        query, key, value = (u[b].astype(np.float64) @ qkv[:, i, h] for i in range(3))
        if table is not None:
            turn = table[..., 0] + 1j * table[..., 1].astype(np.float64)
            query, key = (((a.reshape(len(a), -1, 2) @ [1, 1j]) * turn) for a in (query, key))
            query, key = (np.stack([a.real, a.imag], -1).reshape(len(a), -1) for a in (query, key))
        for i, row in enumerate(query):
            weights = np.exp(key @ row / np.sqrt(len(row)))
            weights = weights * (1 if mask is None else mask[b])
            y[b, i] += (weights / weights.sum()) @ value @ out[h]
    return y


@pytest.fixture(scope="module")
def weights():
    channels = WIDTH // HEADS
    return draw(1, WIDTH, 3, HEADS, channels), draw(2, HEADS, channels, WIDTH)


def as_params(qkv, out):
    return {"params": {"qkv": {"kernel": qkv}, "out": {"kernel": out}}}


def test_matches_float64_with_positions_and_padding(weights):
    u, mask = draw(0, 2, 7, WIDTH), np.ones((2, 7), bool)
    mask[0, 3:5] = False
    table = grid_table((2, 3), WIDTH // HEADS, prefix=1)
    y = jax.jit(Attention(HEADS).apply)(as_params(*weights), u, mask, table)
    np.testing.assert_allclose(y, oracle(u, *weights, mask, table), atol=3e-5)


def test_one_token_sees_itself(weights):
    u = draw(3, 1, 1, WIDTH)
    y = jax.jit(Attention(HEADS).apply)(as_params(*weights), u)
    np.testing.assert_allclose(y, oracle(u, *weights), atol=1e-5)


def test_order_is_seen_through_positions_alone(weights):
    u, table = draw(4, 1, 6, WIDTH), grid_table((2, 3), WIDTH // HEADS)
    run = jax.jit(Attention(HEADS).apply)
    back = run(as_params(*weights), u[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(back, run(as_params(*weights), u), atol=1e-5)
    back = run(as_params(*weights), u[:, ::-1], None, table)[:, ::-1]
    assert abs(back - run(as_params(*weights), u, None, table)).max() > 0.1


def test_dropout_acts_in_training_only(weights):
    u, layer = draw(5, 9, 40, WIDTH), Attention(HEADS, dropout=0.5)
    plain = np.asarray(layer.apply(as_params(*weights), u))
    kept = layer.apply(
        as_params(*weights), u, deterministic=False, rngs={"dropout": jax.random.key(0)}
    )
    dropped = np.asarray(kept) == 0
    assert abs(dropped.mean() - 0.5) < 0.05
    np.testing.assert_allclose(kept[~dropped], 2 * plain[~dropped], rtol=1e-5, atol=1e-6)


def test_erased_class_token_attends_uniformly(weights):
    u, (qkv, out) = draw(6, 1, 7, WIDTH), weights
    table = grid_table((2, 3), WIDTH // HEADS, prefix=1)
    y = jax.jit(Attention(HEADS).apply)(as_params(*weights), u, None, table)
    mean = np.einsum("td,dhc->hc", u[0].astype(np.float64), qkv[:, 2]) / 7
    np.testing.assert_allclose(y[0, 0], np.einsum("hc,hcd->d", mean, out), atol=1e-5)
