"""Ranks against sorting in float64, sums over batches and hosts, and what is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.metrics import ranking

KS = (1, 3, 10)
MEASURE = jax.jit(lambda s, t, e, w: ranking.rank_metrics(s, t, e, KS, w))
RANKS, SAMPLED = jax.jit(ranking.ranks), jax.jit(ranking.sampled_ranks)
DRAWN = jax.jit(ranking.drawn_items, static_argnums=3)


def sorted_rank(scores: np.ndarray, target: int, exclude: np.ndarray) -> int:
    """The place of the target when candidates are sorted, those with its score before it."""
    candidates = [i for i in range(len(scores)) if i == target or not exclude[i]]
    value = np.asarray(scores, np.float64)
    order = sorted(candidates, key=lambda i: (-value[i], i == target))
    return order.index(target) + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 4))
def test_ranks_are_those_of_sorting(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5**levels, (6, 23)).astype(np.float32) / 7
    target, exclude = rng.integers(0, 23, 6), rng.random((6, 23)) < rng.random()
    found = RANKS(scores, target, exclude)
    wanted = [sorted_rank(*row) for row in zip(scores, target, exclude, strict=True)]
    np.testing.assert_array_equal(found, wanted)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_metrics_are_those_of_the_ranks_and_add_up_over_hosts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, target = rng.standard_normal((6, 23)).astype(np.float32), rng.integers(0, 23, 6)
    exclude, weight = rng.random((6, 23)) < 0.3, rng.integers(0, 2, 6).astype(np.float32)
    halves = [MEASURE(*(x[part] for x in (scores, target, exclude, weight)))
              for part in (slice(0, 3), slice(3, 6))]  # fmt: skip
    places = np.array([sorted_rank(*row) for row in zip(scores, target, exclude, strict=True)])
    gain = 1 / np.log2(1 + places.astype(np.float64))
    wanted: dict[str, np.ndarray] = {"mrr": 1 / places}
    for k in KS:
        wanted |= {f"hr@{k}": places <= k, f"ndcg@{k}": gain * (places <= k)}
    assert halves[0].keys() == wanted.keys()
    for name, values in wanted.items():
        value, total = np.sum([halves[0][name], halves[1][name]], axis=0)
        assert total == weight.sum()
        np.testing.assert_allclose(value, (values * weight).sum(), rtol=1e-5, atol=1e-6)


def test_ties_and_what_is_no_number_count_against_the_target() -> None:
    scores = jnp.asarray([[0.0] * 5, [np.nan] * 5, [1, 2, 3, np.nan, 0]])
    np.testing.assert_array_equal(RANKS(scores, jnp.asarray([0, 4, 2])), [5, 5, 2])
    others = jnp.asarray([[1, 2], [0, 1], [3, 4]])
    found = SAMPLED(scores, jnp.asarray([0, 4, 2]), others)
    np.testing.assert_array_equal(found, [3, 3, 2])


def test_the_target_is_a_candidate_though_it_was_had() -> None:
    scores, exclude = jnp.asarray([[3.0, 2.0, 1.0]]), jnp.asarray([[True, True, True]])
    assert RANKS(scores, jnp.asarray([2]), exclude)[0] == 1


def test_among_drawn_items_the_place_of_the_target_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (5, 40)).astype(np.float32)
    target = rng.integers(0, 40, 5)
    others = np.stack([rng.permutation(np.delete(np.arange(40), t))[:12] for t in target])
    found = SAMPLED(scores, target, others)
    mixed = SAMPLED(scores, target, others[:, ::-1])
    np.testing.assert_array_equal(found, mixed)
    for row in range(5):
        outside = np.ones(40, bool)
        outside[others[row]] = False
        assert found[row] == sorted_rank(scores[row], target[row], outside)
    counted = SAMPLED(scores, target, others, np.arange(12) < np.full((5, 1), 4))
    np.testing.assert_array_equal(counted, SAMPLED(scores, target, others[:, :4]))


def test_all_drawn_means_the_rank_among_all() -> None:
    rng = np.random.default_rng(1)
    scores, target = rng.standard_normal((4, 30)).astype(np.float32), rng.integers(0, 30, 4)
    exclude = rng.random((4, 30)) < 0.4
    barred = exclude | (np.arange(30) == target[:, None])
    others, counts = DRAWN(jax.random.key(0), jnp.ones(30), barred, 29)
    found = SAMPLED(scores, target, others, counts)
    np.testing.assert_array_equal(found, RANKS(scores, target, exclude))


@pytest.mark.parametrize("weights", [np.ones(8), np.array([1.0, 2, 4, 8, 1, 1, 1, 0])])
def test_items_are_drawn_by_weight_without_repeats_and_without_what_is_excluded(
    weights: np.ndarray,
) -> None:
    rows = 20000
    exclude = np.zeros((rows, 8), bool)
    exclude[:, 4] = True
    others, counts = DRAWN(jax.random.key(3), jnp.asarray(weights), exclude, 2)
    items = np.asarray(others)
    assert np.asarray(counts).all() and (items != 4).all() and (items[:, 0] != items[:, 1]).all()
    share = np.where(exclude[0], 0, weights)
    share = share / share.sum()
    first = np.bincount(items[:, 0], minlength=8) / rows
    np.testing.assert_allclose(first, share, atol=0.015)
    second = sum(share[i] * np.where(np.arange(8) == i, 0, share / (1 - share[i]))
                 for i in range(8))  # fmt: skip
    np.testing.assert_allclose(np.bincount(items[:, 1], minlength=8) / rows, second, atol=0.015)
