"""The linear probe against normal equations and a probe left out row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.metrics import probe
from bigr_jax.metrics.probe import ALPHAS, best_layer, linear_probe


def clusters(seed, rows, features, classes=3, apart=1.0):
    """Features [rows, D] around a centre per class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    labels[:classes] = np.arange(classes)
    centres = np.random.default_rng(99).standard_normal((classes, features)) * apart
    return centres[labels] + rng.standard_normal((rows, features)) * 1.5, labels


def ridge(x, y, alpha):
    """Weights and intercept by the normal equations; the intercept is not penalised."""
    full = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = alpha * np.eye(full.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(full.T @ full + penalty, full.T @ y)


def scores(weights, x):
    return x @ weights[:-1] + weights[-1]


def oracle(train, labels, test, test_labels, alphas):
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation < 1e-12] = np.inf
    train, test = (train - mean) / deviation, (test - mean) / deviation
    classes = np.unique(labels)
    targets = np.where(labels[:, None] == classes, 1.0, -1.0)
    errors = []
    for alpha in alphas:
        left_out = []
        for i in range(len(train)):
            rest = np.arange(len(train)) != i
            weights = ridge(train[rest], targets[rest], alpha)
            left_out.append(((scores(weights, train[i]) - targets[i]) ** 2).mean())
        errors.append(np.mean(left_out))
    alpha = alphas[int(np.argmin(errors))]
    chosen = scores(ridge(train, targets, alpha), test).argmax(1)
    return (classes[chosen] == test_labels).mean(), alpha


@pytest.mark.parametrize(("rows", "features", "classes"), [(40, 5, 3), (18, 30, 4), (25, 6, 2)])
def test_equals_an_explicit_leave_one_out(rows, features, classes):
    alphas = (1e-2, 0.3, 3.0, 30.0, 1e3)
    chosen = set()
    for seed in range(6):
        train, labels = clusters(seed, rows, features, classes, 0.6)
        test, answers = clusters(seed + 100, 101, features, classes, 0.6)
        labels = labels * 7 - 3
        accuracy, alpha = oracle(train, labels, test, answers * 7 - 3, alphas)
        found = linear_probe(train, labels, test, answers * 7 - 3, alphas)
        assert found == pytest.approx(accuracy, abs=1e-12)
        chosen.add(alpha)
        # What is compared is the choice as well: other penalties give other answers.
        each = {linear_probe(train, labels, test, answers * 7 - 3, (a,)) for a in alphas}
        assert len(each) > 1
    assert len(chosen) > 1


@given(st.integers(0, 2**31), st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
def test_blind_to_scale_shift_and_constant_features(seed, scale, shift):
    train, labels = clusters(0, 30, 4)
    test, answers = clusters(1, 40, 4)
    found = linear_probe(train, labels, test, answers)
    rng = np.random.default_rng(seed)
    factors = scale * rng.uniform(0.5, 2.0, 4)
    fixed = np.full((30, 1), 2.3), 1e3 * rng.standard_normal((40, 1))
    more = (
        np.concatenate([x * factors + shift, column], axis=1)
        for x, column in zip((train, test), fixed, strict=True)
    )
    first, second = more
    assert linear_probe(first, labels, second, answers) == found


def test_a_deviation_that_is_rounding_is_not_blown_up():
    x = np.stack([np.full(30, 0.7), np.arange(30.0), np.arange(30) * 1e-200], axis=1)
    assert x.std(0)[0] > 0
    np.testing.assert_allclose(probe._scale(x), [0.0, 1 / x[:, 1].std(), 0.0])


def test_separable_classes_are_told_and_noise_is_not():
    rng = np.random.default_rng(0)
    labels, answers = np.arange(60) % 4, np.arange(400) % 4
    assert linear_probe(np.eye(4)[labels], labels, np.eye(4)[answers], answers) == 1.0
    noise = linear_probe(rng.standard_normal((60, 8)), labels, rng.random((400, 8)), answers)
    assert 0.1 < noise < 0.4
    same = linear_probe(np.ones((6, 2)), np.array([0, 1, 1, 1, 0, 1]), np.ones((2, 2)), [0, 1])
    assert same == 0.5


def test_a_layer_is_chosen_without_the_test_set():
    train, labels = clusters(0, 200, 6, 4, 2.0)
    test, answers = clusters(1, 100, 6, 4, 2.0)
    rng = np.random.default_rng(2)
    noisy, noisy_test = rng.standard_normal((2, 200, 6)), rng.standard_normal((2, 100, 6))
    layers = np.stack([noisy[0], train, noisy[1]])
    layers_test = np.stack([noisy_test[0], test, noisy_test[1]])
    best, accuracy, every = best_layer(layers, labels, layers_test, answers)
    assert (best, accuracy) == (1, every[1]) and len(every) == 3
    each = [linear_probe(x, labels, y, answers) for x, y in zip(layers, layers_test, strict=True)]
    assert every == each
    # A test set that another layer suits changes what is measured, not what is chosen.
    swapped = best_layer(layers, labels, layers_test[[1, 0, 2]], answers)
    assert swapped[0] == 1 and swapped[1] < 0.6


def test_the_layer_is_chosen_well_where_labels_come_in_turns():
    # Every tenth row would be of one class.
    labels = np.arange(300) % 10
    rng = np.random.default_rng(0)
    good = np.eye(10)[labels] * 2 + rng.standard_normal((300, 10))
    # Tells class 9 from the others, and no more.
    narrow = np.stack([labels == 9] * 10, axis=1) * 9.0 + rng.standard_normal((300, 10))
    layers = np.stack([narrow, good])
    assert best_layer(layers, labels, layers, labels)[0] == 1


def test_the_first_of_equal_layers():
    train, labels = clusters(0, 40, 3)
    best, _, every = best_layer(np.stack([train] * 3), labels, np.stack([train] * 3), labels)
    assert best == 0 and len(set(every)) == 1


def test_penalties_span_what_a_probe_needs():
    assert min(ALPHAS) <= 1e-3 and max(ALPHAS) >= 1e6 and sorted(ALPHAS) == list(ALPHAS)


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ((X, Y, X[:, :1], Y), ValueError, r"train features \(6, 2\) and test features \(6, 1\)"),
        ((X * np.nan, Y, X, Y), UserError, "train features: 6 of 6 rows hold"),
        ((X, Y, X + np.inf, Y), UserError, "test features: 6 of 6 rows"),
        ((X[:0], Y[:0], X, Y), UserError, "train features: 0 rows given, legal: 1 and more"),
        ((X, Y[:5], X, Y), ValueError, r"train labels \(5,\) for features \(6, 2\)"),
        ((X, Y, X, Y[:, None]), ValueError, r"test labels \(6, 1\) for features \(6, 2\)"),
        ((X, Y * 0, X, Y), UserError, "train labels: all 6 are of one class"),
    ],
)
def test_mistakes_are_named(given, kind, message):
    with pytest.raises(kind, match=message):
        linear_probe(*given)


def test_mistakes_of_layers_are_named():
    with pytest.raises(ValueError, match=r"\(6, 2\) and \(1, 6, 2\) are not \[layers, rows, D\]"):
        best_layer(X, Y, X[None], Y)
    with pytest.raises(ValueError, match=r"train labels \(5,\) for features \(6, 2\)"):
        best_layer(X[None], Y[:5], X[None], Y)
    with pytest.raises(UserError, match="train features: 6 rows given, legal: 10 and more"):
        best_layer(X[None], Y, X[None], Y)
