"""Linear probe: how well a linear map on frozen features tells the classes.

Closed form and without randomness: ridge regression onto targets of +1 and -1. Source: the few-shot
evaluator of big_vision (github.com/google-research/big_vision).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.metrics.features import checked, checked_pair

ALPHAS = tuple(2.0 ** np.arange(-10, 21, 2))
_NAMES = ("train features", "test features")


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    alphas: Sequence[float] = ALPHAS,
) -> float:
    """Returns the accuracy, in [0, 1], on test features of a probe learnt from training features.

    train [n, D], test [m, D], labels int [n] and [m]; alphas: penalties, of which the one with the
    least leave-one-out squared error on the training features is taken. Features are standardised
    by the training features; one that is constant there is left out.
    Raises as `features.checked_pair` does, ValueError for other numbers of labels, and UserError
    where the training labels are all the same.
    """
    # A second to import, which what never probes need not wait for.
    from sklearn.linear_model import RidgeClassifierCV

    train, test = checked_pair(train, test, 1, _NAMES)
    _check_labels(train_labels, train, "train")
    _check_labels(test_labels, test, "test")
    if len(np.unique(train_labels)) < 2:
        raise UserError(f"train labels: all {len(train)} are of one class")
    mean, scale = train.mean(axis=0), _scale(train)
    model = RidgeClassifierCV(alphas=list(alphas)).fit((train - mean) * scale, train_labels)
    return float(np.mean(model.predict((test - mean) * scale) == test_labels))


def best_layer(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> tuple[int, float, list[float]]:
    """Returns the best layer, its accuracy on the test features, and the accuracies of all layers.

    train [layers, n, D], test [layers, m, D], labels as for `linear_probe`. The layer is chosen on
    a random tenth of the training features, always the same one, by probes learnt from the rest;
    the accuracies are of probes learnt from all. Raises as `linear_probe` does, and UserError for
    fewer than 10 training rows.
    """
    if np.ndim(train) != 3 or np.ndim(test) != 3 or len(train) != len(test):
        raise ValueError(f"{np.shape(train)} and {np.shape(test)} are not [layers, rows, D]")
    train, test, labels = np.asarray(train), np.asarray(test), np.asarray(train_labels)
    for features in train:
        _check_labels(labels, features, "train")
        checked(features, 10, _NAMES[0])
    # Not every tenth row: labels may come in turns.
    order = np.random.default_rng(0).permutation(len(labels))
    held, kept = np.split(order, [len(labels) // 10])
    trials = [linear_probe(x[kept], labels[kept], x[held], labels[held]) for x in train]
    best = int(np.argmax(trials))
    pairs = zip(train, test, strict=True)
    accuracies = [linear_probe(x, labels, y, test_labels) for x, y in pairs]
    return best, accuracies[best], accuracies


def _check_labels(labels: np.ndarray, features: np.ndarray, name: str) -> None:
    if np.shape(labels) != features.shape[:1]:
        raise ValueError(f"{name} labels {np.shape(labels)} for features {features.shape}")


def _scale(x: np.ndarray) -> np.ndarray:
    """1 / standard deviation [D], and 0 for constant columns."""
    deviation = x.std(axis=0)
    # Rounding of the mean gives a constant column a deviation.
    varies = (x.max(axis=0) > x.min(axis=0)) & (deviation > 0)
    return np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
