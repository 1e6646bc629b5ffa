from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.models.decoder_lm import DecoderLM

VOCABULARY, WIDTH, HEADS, DEPTH = 11, 8, 2, 2
NET = DecoderLM(VOCABULARY, WIDTH, DEPTH, HEADS, hidden=12, tied=False)


@pytest.fixture(scope="module")
def params():
    found = jax.jit(NET.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    # Away from the start, where logits are nearly the same.
    return jax.tree.map(lambda leaf: leaf * 6, jax.tree.map(np.asarray, nn.meta.unbox(found)))


@functools.cache
def whole():
    return jax.jit(NET.apply)


@functools.cache
def extended():
    def extend(params, *given):
        return NET.apply(params, *given, method="extend")

    return jax.jit(extend)


def tokens(batch, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length)).astype(np.int32)


def oracle(params, row):
    """One sequence, token by token, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    x = p["table"][row]

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    for layer in range(DEPTH):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["layers"])
        u = norm(x, own["attention_norm"]["scale"])
        qkv = np.einsum("le,ethd->lthd", u, own["attention"]["qkv"]["kernel"])
        half = WIDTH // HEADS // 2
        angle = np.arange(len(row))[:, None] * 10000.0 ** (-np.arange(half) / half)
        turn = np.exp(1j * angle)[:, None]
        q, k = ((qkv[:, i, :, ::2] + 1j * qkv[:, i, :, 1::2]) * turn for i in range(2))
        score = np.einsum("lhd,mhd->hlm", q, k.conj()).real / np.sqrt(WIDTH // HEADS)
        score[:, *np.triu_indices(len(row), 1)] = -np.inf
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        y = np.einsum("hlm,mhd->lhd", weight, qkv[:, 2])
        x = x + np.einsum("lhd,hde->le", y, own["attention"]["out"]["kernel"])
        u = norm(x, own["mlp_norm"]["scale"])
        gate, up = (u @ own["mlp"][name]["kernel"] for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ own["mlp"]["down"]["kernel"]
    return norm(x, p["norm"]["scale"]) @ p["head"].T


@pytest.mark.parametrize("length", [1, 7])
def test_logits_are_those_of_float64(params, length):
    rows = tokens(2, length)
    found = whole()(params, rows)
    wanted = np.stack([oracle(params, row) for row in rows])
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_no_token_sees_what_comes_after(params):
    rows = tokens(1, 7)
    other = rows.copy()
    other[:, 4:] = (other[:, 4:] + 1) % VOCABULARY
    one, two = (np.asarray(whole()(params, x)) for x in (rows, other))
    np.testing.assert_array_equal(one[:, :4], two[:, :4])
    assert (one[:, 4:] != two[:, 4:]).any()


def test_going_on_gives_what_reading_the_whole_gives(params):
    rows, slots = tokens(3, 9), 12
    wanted = np.asarray(whole()(params, rows))
    # The three have read differently far: 2, 4 and 5 tokens.
    read = np.array([2, 4, 5], np.int32)
    cache = NET.empty_cache(3, slots)
    first, cache = extended()(params, rows[:, :5], cache, np.zeros(3, np.int32))
    np.testing.assert_allclose(first, wanted[:, :5], atol=2e-5)
    for step in range(4):
        now = read + step
        following = np.take_along_axis(rows, now[:, None], axis=1)
        logits, cache = extended()(params, following, cache, now)
        np.testing.assert_allclose(logits[:, 0], wanted[np.arange(3), now], atol=5e-5)


def test_a_tree_of_tokens_reads_every_branch_as_a_sequence(params):
    start = tokens(1, 3)
    # Node: parent. 0 and 1 follow what was read, 2 and 3 follow 0, 4 follows 3.
    nodes, parents, depth = tokens(1, 5, seed=1), [-1, -1, 0, 0, 3], [0, 0, 1, 1, 2]
    among = np.eye(5, dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            among[node] |= among[parent]
    cache = NET.empty_cache(1, 12)
    _, cache = extended()(params, start, cache, np.zeros(1, np.int32))
    length = np.array([3], np.int32)
    logits, _ = extended()(params, nodes, cache, length, 3 + np.array([depth]), among)
    for node in range(5):
        branch = np.concatenate([start[0], nodes[0, among[node]]])
        np.testing.assert_allclose(logits[0, node], oracle(params, branch)[-1], atol=5e-5)


def test_a_cache_that_is_too_short_is_refused(params):
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4 slots"):
        extended()(params, tokens(1, 5), NET.empty_cache(1, 4), np.zeros(1, np.int32))


def test_heads_must_fit():
    net = DecoderLM(VOCABULARY, 10, 1, 3)
    with pytest.raises(UserError, match=r"width=10 is not a multiple of 2 \* heads = 6"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


def test_a_tied_head_is_the_table():
    net = DecoderLM(VOCABULARY, WIDTH, 1, HEADS)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    assert set(shapes["params"]) == {"table", "layers", "norm"}
    assert nn.meta.unbox(shapes)["params"]["layers"]["mlp"]["up"]["kernel"].shape == (1, WIDTH, 256)
