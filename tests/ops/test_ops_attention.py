from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.ops.attention import softmax_attention


def oracle(query, key, value, mask=None):
    query, key, value = (a.astype(np.float64) for a in (query, key, value))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    if mask is not None:
        # Far below every logit, yet finite: a row without keys comes out as an average.
        logits = np.where(mask[:, None, None, :], logits, -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


def draw(seed, batch, queries, keys, heads=2, channels=5):
    rng = np.random.default_rng(seed)
    shapes = [(batch, n, heads, channels) for n in (queries, keys, keys)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("batch, queries, keys", [(2, 7, 7), (1, 1, 1), (1, 3, 4)])
def test_matches_float64(batch, queries, keys):
    arrays = draw(0, batch, queries, keys)
    actual = jax.jit(softmax_attention)(*arrays)
    np.testing.assert_allclose(actual, oracle(*arrays), atol=2e-6)


def test_masked_keys_have_no_weight():
    query, key, value = draw(1, 3, 4, 6)
    mask = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [0] * 6], bool)
    attend = jax.jit(lambda *a: softmax_attention(*a[:3], key_mask=a[3]))
    actual = np.asarray(attend(query, key, value, mask))
    np.testing.assert_allclose(actual, oracle(query, key, value, mask), atol=2e-6)
    np.testing.assert_allclose(actual[2, 0], value[2].mean(axis=0), atol=1e-6)
    changed = attend(query, np.where(mask[..., None, None], key, 9.0), value, mask)
    np.testing.assert_array_equal(changed[:2], actual[:2])


def test_gradients_match_differences_of_the_oracle():
    arrays, steps = draw(2, 1, 3, 5), draw(3, 1, 3, 5)
    weight = draw(4, 1, 3, 5)[0]
    loss = lambda *a: (softmax_attention(*a) * weight).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for i in range(3):
        ends = []
        for sign in (1, -1):
            moved = [a.astype(np.float64) for a in arrays]
            moved[i] = moved[i] + sign * 1e-5 * steps[i]
            ends.append((oracle(*moved) * weight).sum())
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((gradients[i] * steps[i]).sum(), slope, rtol=1e-4, atol=1e-5)


def test_low_precision_inputs_have_float32_logits():
    # Logits of about 260 that differ by 1.4; bfloat16 numbers of that size lie 2 apart.
    query = jnp.full((1, 1, 1, 2), 16.0, jnp.bfloat16)
    rows = np.array([[16.0, 16.0 * (2**0.5 - 1)], [16.0, 16.0 * (2**0.5 - 1) + 0.125]])
    key = jnp.asarray(rows[None, :, None], jnp.bfloat16)
    value = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1).repeat(2, axis=-1)
    actual = softmax_attention(query, key, value)
    assert actual.dtype == jnp.bfloat16
    wanted = oracle(*(np.asarray(a, np.float32) for a in (query, key, value)))
    assert wanted[0, 0, 0, 0] > 0.6
    np.testing.assert_allclose(actual.astype(jnp.float32), wanted, atol=4e-3)


@pytest.mark.parametrize("length", [1, 5])
def test_causal_tokens_see_none_that_come_after(length):
    query, key, value = draw(5, 2, length, length)
    attend = jax.jit(lambda *a: softmax_attention(*a, causal=True))
    actual = np.asarray(attend(query, key, value))
    for last in range(length):
        seen = (query[:, last : last + 1], key[:, : last + 1], value[:, : last + 1])
        np.testing.assert_allclose(actual[:, last : last + 1], oracle(*seen), atol=2e-6)
