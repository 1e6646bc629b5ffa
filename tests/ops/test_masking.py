from __future__ import annotations

import math
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.ops.masking import (
    cloze_count,
    cloze_mask,
    cosine_count,
    cosine_mask,
    last_mask,
    places_of,
    random_mask,
    uniform_mask,
)

LENGTH = 9
masks = jax.jit(random_mask, static_argnums=(1, 2))
clozes = jax.jit(cloze_mask, static_argnums=(2, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, LENGTH), min_size=4, max_size=4))
def test_every_row_has_its_count(seed, counts):
    mask = masks(jax.random.key(seed), 4, LENGTH, np.array(counts))
    assert mask.shape == (4, LENGTH) and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(axis=1), counts)


def test_one_count_serves_all_rows():
    np.testing.assert_array_equal(masks(jax.random.key(0), 4, LENGTH, 5).sum(axis=1), [5] * 4)


def test_all_subsets_are_equally_likely():
    mask = np.asarray(random_mask(jax.random.key(1), 6000, 4, 2))
    found = Counter(map(bytes, mask))
    assert len(found) == 6
    assert all(abs(n - 1000) < 5 * np.sqrt(1000) for n in found.values())


@pytest.mark.parametrize("length", [1, 7, 256])
def test_counts_follow_the_cosine(length):
    wanted = Counter()
    for s in range(length):
        ratio = float(np.cos(np.pi / 2 * s / length))
        wanted[max(1, int(np.floor(length * ratio)))] += 1 / length
    draws = 40_000
    counts = cosine_count(jax.random.key(2), (draws,), length)
    found = Counter(np.asarray(counts).tolist())
    assert found.keys() <= wanted.keys()
    for value, share in wanted.items():
        assert abs(found[value] / draws - share) < 5 * np.sqrt(share / draws)


def test_mean_ratio():
    counts = cosine_count(jax.random.key(3), (40_000,), 256)
    assert abs(np.asarray(counts).mean() / 256 - 0.637) < 5e-3


def test_size_is_drawn_per_row_or_per_batch():
    keys = jax.random.split(jax.random.key(4), 16)

    def sizes(**options):
        return np.asarray(jax.vmap(lambda k: cosine_mask(k, 8, LENGTH, **options).sum(1))(keys))

    assert all(len(set(row)) > 1 for row in sizes())
    batches = sizes(per_batch=True)
    assert all(len(set(row)) == 1 for row in batches) and len(set(batches[:, 0])) > 3


def test_one_token_is_always_masked():
    assert jax.jit(lambda key: cosine_mask(key, 3, 1))(jax.random.key(5)).all()


@pytest.mark.parametrize("length", [1, 3])
def test_every_number_of_masked_tokens_is_equally_likely(length):
    draws = 6000
    mask = np.asarray(uniform_mask(jax.random.key(4), draws, length))
    counts = Counter(mask.sum(axis=1).tolist())
    assert counts.keys() == set(range(1, length + 1))
    subsets = Counter(map(bytes, mask))
    for found, size in ((counts, length), (subsets, None)):
        for key, number in found.items():
            ways = 1 if size else math.comb(length, sum(key))
            share = 1 / length / ways
            assert abs(number / draws - share) < 5 * np.sqrt(share / draws)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.5, 0.6, 1.0]))
def test_a_cloze_asks_for_exactly_its_share_of_the_tokens(seed, rate):
    rng, most = np.random.default_rng(seed), 20
    lengths = rng.integers(0, 26, 12)
    real = np.arange(25) >= 25 - lengths[:, None]
    mask = np.asarray(clozes(jax.random.key(seed), real, rate, most))
    assert not mask[~real].any()
    wanted = [min(most, max(1, round(n * rate))) if n else 0 for n in lengths.tolist()]
    np.testing.assert_array_equal(mask.sum(1), wanted)


def test_halves_are_rounded_as_python_rounds_them():
    assert [cloze_count(n, 0.1, 99) for n in (1, 5, 15, 25, 26, 35)] == [1, 1, 2, 2, 3, 4]
    assert cloze_count(200, 0.2, 20) == 20 and cloze_count(1, 0.0, 20) == 1


def test_every_real_token_is_asked_for_as_often():
    real = np.tile([False, True, True, True, False], (8000, 1))
    share = np.asarray(clozes(jax.random.key(2), real, 0.3, 9)).mean(0)
    np.testing.assert_allclose(share, [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=0.02)


def test_the_last_token_is_that_before_the_padding():
    real = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], bool)
    wanted = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]], bool)
    np.testing.assert_array_equal(jax.jit(last_mask)(real), wanted)


def test_places_fill_a_fixed_number_of_slots():
    mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0] * 5], bool)
    places, weights = jax.jit(places_of, static_argnums=1)(mask, 3)
    np.testing.assert_array_equal(places, [[1, 3, 4], [4, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(weights, [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert places.dtype == np.int32 and weights.dtype == np.float32
