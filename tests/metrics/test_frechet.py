"""Frechet distance against matrix square roots, and what a distance promises."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.metrics import frechet as module
from bigr_jax.metrics.frechet import Stream, combine, frechet, moments

SEEDS = st.integers(0, 2**31)


def draw(seed, rows, features, spread=1.0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((features, features))
    return spread * rng.standard_normal((rows, features)) @ mixing + rng.standard_normal(features)


def by_square_root(a, b):
    """The published formula, for covariances of full rank."""
    product = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return apart + np.cov(a.T).trace() + np.cov(b.T).trace() - 2 * np.trace(product).real


def by_singular_values(a, b):
    """The same from the data, where covariances have no full rank."""
    first, second = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    overlap = scipy.linalg.svdvals(first @ second.T).sum()
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return apart + (first**2).sum() + (second**2).sum() - 2 * overlap


@pytest.mark.parametrize(("n", "m", "features"), [(40, 40, 5), (300, 100, 24), (90, 200, 2)])
def test_equals_the_published_formula(n, m, features):
    a, b = draw(0, n, features), draw(1, m, features, 1.3)
    np.testing.assert_allclose(frechet(moments(a), moments(b)), by_square_root(a, b), rtol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (2, 9), (30, 100), (2, 2)])
def test_fewer_rows_than_features(n, m):
    a, b = draw(0, n, 48), draw(1, m, 48)
    found = frechet(moments(a), moments(b))
    np.testing.assert_allclose(found, by_singular_values(a, b), rtol=1e-11)


def test_one_feature_in_closed_form():
    a, b = draw(0, 30, 1), draw(1, 20, 1)
    wanted = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    np.testing.assert_allclose(frechet(moments(a), moments(b)), wanted, rtol=1e-12)


@given(SEEDS, st.integers(2, 40), st.integers(1, 24))
def test_of_itself_is_zero(seed, rows, features):
    own = moments(draw(seed, rows, features))
    assert 0.0 <= frechet(own, own) < 1e-12 * max(1.0, own.covariance.trace())


@given(SEEDS, st.integers(2, 40), st.integers(1, 24))
def test_of_a_shifted_copy_is_the_square_of_the_shift(seed, rows, features):
    x = draw(seed, rows, features)
    shift = np.random.default_rng(seed + 1).standard_normal(features)
    found = frechet(moments(x), moments(x + shift))
    np.testing.assert_allclose(found, (shift**2).sum(), rtol=1e-9, atol=1e-10)


@given(SEEDS, st.integers(2, 40), st.integers(1, 24))
def test_symmetric_and_blind_to_rotation(seed, rows, features):
    a, b = draw(seed, rows, features), draw(seed + 1, rows + 3, features)
    turn, _ = np.linalg.qr(draw(seed + 2, features, features))
    found = frechet(moments(a), moments(b))
    np.testing.assert_allclose(frechet(moments(b), moments(a)), found, rtol=1e-9)
    np.testing.assert_allclose(frechet(moments(a @ turn), moments(b @ turn)), found, rtol=1e-9)


def test_constant_features_differ_by_their_means_only():
    a, b = np.zeros((5, 3)), np.ones((4, 3))
    assert frechet(moments(a), moments(b)) == 3.0


@given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.integers(1, 9))
def test_moments_add_up(seed, n, m, features):
    a, b = draw(seed, n, features), draw(seed + 1, m, features)
    both, found = np.concatenate([a, b]), combine(moments(a), moments(b))
    assert found.rows == n + m
    np.testing.assert_allclose(found.mean, both.mean(0), rtol=1e-11, atol=1e-12)
    wanted = np.cov(both, rowvar=False).reshape(features, features)
    np.testing.assert_allclose(found.covariance, wanted, rtol=1e-10, atol=1e-11)


@given(SEEDS, st.lists(st.integers(1, 9), min_size=2, max_size=8), st.sampled_from([1, 4, 2048]))
def test_a_stream_has_the_moments_of_all_its_batches(seed, sizes, held):
    features = draw(seed, sum(sizes), 5) + 1e3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HELD", held)
        stream = Stream()
        for part in np.split(features, np.cumsum(sizes)[:-1]):
            stream.add(part)
        # It may be asked in between.
        found = stream.moments()
        assert stream.moments() is found
    wanted = moments(features)
    assert found.rows == wanted.rows
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-8, atol=1e-8)


def test_a_stream_of_too_few_rows():
    stream = Stream("drawn")
    with pytest.raises(UserError, match="drawn: 0 rows given, legal: 2 and more"):
        stream.moments()
    stream.add(np.ones((1, 3)))
    with pytest.raises(UserError, match="drawn: 1 rows given, legal: 2 and more"):
        stream.moments()
    with pytest.raises(UserError, match="drawn: 1 of 1 rows hold"):
        stream.add(np.full((1, 3), np.inf))
    stream.add(np.zeros((1, 3)))
    assert stream.moments().covariance == pytest.approx(np.full((3, 3), 0.5))


def test_single_precision_is_widened_before_anything_is_summed():
    x = (1e4 + np.random.default_rng(0).standard_normal((200, 3))).astype(np.float32)
    found = moments(x)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9)


@pytest.mark.parametrize(
    ("features", "kind", "message"),
    [
        (np.zeros((1, 3)), UserError, "drawn: 1 rows given, legal: 2 and more"),
        (np.zeros(3), ValueError, r"drawn \(3,\) are not \[n, D\]"),
        (np.zeros((4, 0)), ValueError, r"drawn \(4, 0\) are not"),
        (np.array([[0.0], [np.nan], [np.inf]]), UserError, "drawn: 2 of 3 rows hold numbers that"),
    ],
)
def test_mistakes_are_named(features, kind, message):
    with pytest.raises(kind, match=message):
        moments(features, "drawn")


def test_other_numbers_of_features_are_refused():
    with pytest.raises(ValueError, match="moments of 3 and of 4 features"):
        frechet(moments(np.eye(3)), moments(np.eye(4)))
