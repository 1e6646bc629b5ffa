"""Kernel distance against loops over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.metrics import kernel
from bigr_jax.metrics.kernel import kernel_distance, subset_kernel_distance


def by_loops(a, b):
    def k(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    within = [np.mean([k(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


@pytest.mark.parametrize(("n", "m", "features"), [(5, 8, 3), (2, 2, 1), (9, 4, 12)])
@pytest.mark.parametrize("block", [1024, 3])
def test_equals_the_mean_over_all_pairs(n, m, features, block, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", block)
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, features)), rng.standard_normal((m, features)) + 0.5
    np.testing.assert_allclose(kernel_distance(a, b), by_loops(a, b), rtol=1e-11, atol=1e-13)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 12), st.integers(1, 6))
def test_symmetric_and_blind_to_rotation_and_order(seed, n, m, features):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, features)), rng.standard_normal((m, features))
    turn, _ = np.linalg.qr(rng.standard_normal((features, features)))
    found, close = kernel_distance(a, b), dict(rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(kernel_distance(b, a), found, **close)
    np.testing.assert_allclose(kernel_distance(a @ turn, b @ turn), found, **close)
    np.testing.assert_allclose(kernel_distance(rng.permutation(a), b), found, **close)


def test_unbiased_for_equal_distributions():
    # x, y = +-1: the kernel is 8 for equal signs and 0 otherwise, its variance known.
    rng = np.random.default_rng(0)
    found = [kernel_distance(*rng.choice([-1.0, 1.0], (2, 4, 1))) for _ in range(2000)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error and np.min(found) < 0


def test_constant_sets_in_closed_form():
    # k(0, 0) = 1, k(2, 2) = 5^3, k(0, 2) = 1
    assert kernel_distance(np.zeros((3, 4)), np.full((2, 4), 2.0)) == 1 + 125 - 2


def test_subsets_are_drawn_as_published():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((11, 3)), rng.standard_normal((7, 3)) + 0.5
    theirs, wanted = np.random.RandomState(2020), []
    for _ in range(6):
        x = a[theirs.choice(11, 5, replace=False)]
        wanted.append(by_loops(x, b[theirs.choice(7, 5, replace=False)]))
    found = subset_kernel_distance(a, b, 6, 5)
    np.testing.assert_allclose(found, (np.mean(wanted), np.std(wanted)), rtol=1e-10)
    whole = subset_kernel_distance(a[:7], b, 3, 7)
    assert whole == pytest.approx((kernel_distance(a[:7], b), 0), abs=1e-12)
    for size in (8, 1):
        with pytest.raises(UserError, match=f"subsets of {size} rows: legal: 2 to 7"):
            subset_kernel_distance(a, b, size=size)


@pytest.mark.parametrize(
    ("a", "b", "kind", "message"),
    [
        (np.ones((1, 2)), np.ones((3, 2)), UserError, "generated: 1 rows given, legal: 2 and more"),
        (np.ones((3, 2)), np.ones((0, 2)), UserError, "real: 0 rows given"),
        (np.ones((3, 2)), np.ones((3, 4)), ValueError, r"generated \(3, 2\) and real \(3, 4\)"),
        (np.ones((3, 2)), np.full((3, 2), np.inf), UserError, "real: 3 of 3 rows hold"),
    ],
)
def test_mistakes_are_named(a, b, kind, message):
    with pytest.raises(kind, match=message):
        kernel_distance(a, b)
