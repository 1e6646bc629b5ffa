from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.nn.attention import Attention
from bigr_jax.nn.block import Block
from bigr_jax.nn.mlp import SwiGLU

WIDTH = 8


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


@pytest.fixture(scope="module")
def modulated():
    """A modulated block, its input and modulation, and variables away from their initial values."""
    block, x, six = Block(2, 12, adaln=True), draw(0, 2, 5, WIDTH), draw(1, 2, 1, 6, WIDTH)
    variables = nn.unbox(jax.jit(block.init)(jax.random.key(0), x, six))
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * draw(2, *leaf.shape), variables)
    return block, x, six, variables


def test_both_branches_are_shifted_scaled_and_gated(modulated):
    block, x, shared, variables = modulated
    p = variables["params"]
    six = np.moveaxis(shared + p["modulation"]["offset"], -2, 0)
    attend = lambda u: np.asarray(Attention(2).apply({"params": p["mixer"]}, u))  # noqa: E731
    feed = lambda u: np.asarray(SwiGLU(12).apply({"params": p["mlp"]}, u))  # noqa: E731
    h = x + six[2] * attend(norm(x, p["mixer_norm"]["scale"]) * (1 + six[1]) + six[0])
    wanted = h + six[5] * feed(norm(h, p["mlp_norm"]["scale"]) * (1 + six[4]) + six[3])
    actual = jax.jit(block.apply)(variables, x, shared)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_without_a_condition_it_is_the_plain_block(modulated):
    _, x, _, variables = modulated
    params = {k: v for k, v in variables["params"].items() if k != "modulation"}
    plain = jax.jit(Block(2, 12).apply)({"params": params}, x)
    neutral = np.zeros((2, 1, 6, WIDTH), np.float32)
    neutral[:, :, [2, 5]] = 1
    neutral -= variables["params"]["modulation"]["offset"]
    same = jax.jit(Block(2, 12, adaln=True).apply)(variables, x, neutral)
    np.testing.assert_allclose(plain, same, rtol=1e-5, atol=1e-5)


def test_closed_gates_leave_the_residual_stream(modulated):
    block, x, _, variables = modulated
    closed = np.broadcast_to(-variables["params"]["modulation"]["offset"], (2, 1, 6, WIDTH))
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, x, closed), x)


def test_padding_is_not_read():
    block, x, mask = Block(2, 12), draw(0, 2, 5, WIDTH), np.ones((2, 5), bool)
    mask[:, 3:] = False
    variables = nn.unbox(jax.jit(block.init)(jax.random.key(0), x))
    run = jax.jit(lambda x: block.apply(variables, x, None, mask))
    other = np.where(mask[..., None], x, 7.0)
    np.testing.assert_array_equal(run(x)[:, :3], run(other)[:, :3])


def test_low_precision_keeps_a_float32_stream():
    block, x = Block(2, 12, dtype=jnp.bfloat16), draw(0, 1, 3, WIDTH)
    variables = nn.unbox(jax.jit(block.init)(jax.random.key(0), x))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    y = jax.jit(block.apply)(variables, x)
    assert y.dtype == jnp.float32
    exact = jax.jit(block.clone(dtype=jnp.float32).apply)(variables, x)
    np.testing.assert_allclose(y, exact, atol=1e-2)


def test_modulation_must_be_given():
    with pytest.raises(ValueError, match="modulation"):
        Block(2, 12, adaln=True).init(jax.random.key(0), draw(0, 1, 3, WIDTH))
