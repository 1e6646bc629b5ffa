"""Precision and recall against loops over points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.metrics import neighbours
from bigr_jax.metrics.neighbours import exact_squares, precision_recall, rounded_squares


def by_loops(generated, real, k):
    def inside(points, centres):
        hits = 0
        for point in points:
            hit = False
            for i, centre in enumerate(centres):
                others = [c for j, c in enumerate(centres) if j != i]
                radius = sorted(((centre - other) ** 2).sum() for other in others)[k - 1]
                hit |= ((point - centre) ** 2).sum() <= radius
            hits += hit
        return hits / len(points)

    return {"precision": inside(generated, real), "recall": inside(real, generated)}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [1024, 4])
def test_equals_the_definition(k, block, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    rng = np.random.default_rng(k)
    generated, real = rng.standard_normal((23, 3)) + 1.2, rng.standard_normal((18, 3))
    found = precision_recall(generated, real, k)
    assert found == pytest.approx(by_loops(generated, real, k), abs=1e-15)
    assert all(0 < share < 1 for share in found.values())


@given(st.integers(0, 2**31), st.integers(4, 12), st.integers(4, 12), st.integers(1, 3))
def test_ties_and_duplicates_count_as_inside(seed, n, m, k):
    # On a grid equal distances are the rule.
    rng = np.random.default_rng(seed)
    generated, real = rng.integers(0, 3, (n, 2)), rng.integers(0, 3, (m, 2))
    found = precision_recall(generated, real, k)
    assert found == pytest.approx(by_loops(generated, real, k), abs=1e-15)
    swapped = precision_recall(real, generated, k)
    assert swapped == {"precision": found["recall"], "recall": found["precision"]}


@given(st.integers(0, 2**31), st.integers(4, 20), st.integers(1, 40))
def test_identical_sets(seed, rows, features):
    x = np.random.default_rng(seed).standard_normal((rows, features)).astype(np.float32)
    assert precision_recall(x, x[::-1]) == {"precision": 1.0, "recall": 1.0}


def test_a_surface_belongs_to_its_ball_whatever_the_digits():
    # |x|^2 + |y|^2 - 2 x y would lose such distances to rounding.
    real = 1e6 + np.arange(4.0)[:, None] * 0.1
    assert precision_recall(real[[0, 3, 0, 3]], real)["precision"] == 1.0
    reach = real[3, 0] - real[0, 0]
    end = real[3] + reach
    assert end[0] - real[3, 0] <= reach
    assert precision_recall(np.stack([end] * 4), real)["precision"] == 1.0
    beyond = np.nextafter(end, np.inf)
    assert precision_recall(np.stack([beyond] * 4), real)["precision"] == 0.0


def test_distances_through_a_product_are_the_same_but_for_rounding(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    generated, real = rng.standard_normal((23, 40)) + 0.3, rng.standard_normal((18, 40))
    # Far from the origin, squares of float32 would swallow every difference.
    for shift in (0.0, 100.0):
        x, y = generated + shift, real + shift
        np.testing.assert_allclose(rounded_squares(x, y), exact_squares(x, y), rtol=1e-4)
        found = precision_recall(x, y, 3, rounded_squares)
        assert found == precision_recall(generated, real)
    assert rounded_squares(real, real).min() >= 0


def test_far_sets_and_a_collapsed_one():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((50, 2))
    assert precision_recall(real + 100, real) == {"precision": 0.0, "recall": 0.0}
    # All drawn points on one real one: each is good, and they cover nothing else.
    collapsed = precision_recall(np.repeat(real[:1], 10, axis=0), real)
    assert collapsed == {"precision": 1.0, "recall": 1 / 50}


@pytest.mark.parametrize(
    ("generated", "real", "k", "kind", "message"),
    [
        (np.ones((3, 2)), np.ones((9, 2)), 3, UserError, "generated: 3 rows given, legal: 4 and"),
        (np.ones((9, 2)), np.ones((5, 2)), 5, UserError, "real: 5 rows given, legal: 6 and more"),
        (np.ones((9, 2)), np.ones((9, 3)), 3, ValueError, r"\(9, 2\) and real \(9, 3\) differ"),
        (np.full((9, 2), np.nan), np.ones((9, 2)), 3, UserError, "generated: 9 of 9 rows hold"),
        (np.ones((9, 2)), np.ones((9, 2)), 0, UserError, "k=0: legal: 1 and more"),
    ],
)
def test_mistakes_are_named(generated, real, k, kind, message):
    with pytest.raises(kind, match=message):
        precision_recall(generated, real, k)
