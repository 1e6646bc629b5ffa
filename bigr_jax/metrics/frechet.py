"""Frechet distance of two sets of features, each taken for a Gaussian.

In the features of Inception-v3 this is FID; in those of another network it is not, and is not
comparable to it. Source: Heusel et al. (arXiv 1706.08500).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.metrics.features import checked

_HELD = 2048


class Moments(NamedTuple):
    """What the distance needs of features [rows, D]: float64 mean [D] and covariance [D, D].

    rows is 0 where a file of statistics does not tell it; such moments cannot be combined.
    """

    mean: np.ndarray
    covariance: np.ndarray
    rows: int


def moments(features: np.ndarray, name: str = "features") -> Moments:
    """Returns the mean and the unbiased covariance (ddof 1) of features [n, D], n >= 2.

    Raises as `features.checked` does, calling them `name`.
    """
    x = checked(features, 2, name)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1), len(x))


def combine(a: Moments, b: Moments) -> Moments:
    """Returns the moments of both sets together. Source: Chan, Golub and LeVeque (1979)."""
    rows, delta = a.rows + b.rows, b.mean - a.mean
    scatter = (a.rows - 1) * a.covariance + (b.rows - 1) * b.covariance
    scatter = scatter + np.outer(delta, delta) * (a.rows * b.rows / rows)
    return Moments(a.mean + delta * (b.rows / rows), scatter / (rows - 1), rows)


class Stream:
    """The moments of features that come batch by batch, as many as there are: they are not kept.

    name  what they are called in errors
    """

    def __init__(self, name: str = "features") -> None:
        self._name = name
        self._held: list[np.ndarray] = []
        self._total: Moments | None = None

    def add(self, features: np.ndarray) -> None:
        """Takes features [n, D], n >= 1. Raises as `features.checked` does."""
        self._held.append(checked(features, 1, self._name))
        # Few large products instead of many small ones.
        if sum(map(len, self._held)) >= _HELD:
            self._fold()

    def moments(self) -> Moments:
        """Returns the moments of all that came. Raises UserError for fewer than 2 rows."""
        if self._held:
            self._fold()
        if self._total is None or self._total.rows < 2:
            rows = 0 if self._total is None else self._total.rows
            raise UserError(f"{self._name}: {rows} rows given, legal: 2 and more")
        return self._total

    def _fold(self) -> None:
        x = np.concatenate(self._held)
        self._held = []
        if len(x) > 1:
            new = moments(x, self._name)
        else:
            new = Moments(x[0], np.zeros((x.shape[1], x.shape[1])), 1)
        self._total = new if self._total is None else combine(self._total, new)


def frechet(a: Moments, b: Moments) -> float:
    """Returns the squared Frechet distance, |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), >= 0.

    It grows as the number of features falls: compare at equal numbers only.
    Raises ValueError where the numbers of dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {a.mean.size} and of {b.mean.size} features")
    # With A = F F^T and B = G G^T, tr (A B)^(1/2) is the sum of the singular values of F^T G. The
    # roots of eigenvalues of the product would turn rounding of 1e-16 into 1e-8, D - n times over.
    overlap = np.linalg.svd(_factor(a).T @ _factor(b), compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * overlap
    return max(float(np.square(a.mean - b.mean).sum() + spread), 0.0)


def _factor(a: Moments) -> np.ndarray:
    """F [D, rank] with F F^T = covariance."""
    values, vectors = np.linalg.eigh(a.covariance)
    # What is below is rounding: the covariance of n < D features has rank n - 1.
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])
