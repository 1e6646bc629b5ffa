"""Kernel distance of two sets of features: unbiased, so that sets of any number may be compared.

In the features of Inception-v3 this is KID; in those of another network it is not, and is not
comparable to it. Source: Binkowski et al. (arXiv 1801.01401).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.metrics.features import checked_pair

_BLOCK = 1024
SUBSETS, SUBSET_SIZE = 100, 1000


class SubsetDistance(NamedTuple):
    """Mean and standard deviation of the kernel distance over random subsets."""

    mean: float
    deviation: float


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the unbiased squared maximum mean discrepancy, with the kernel (x . y / D + 1)^3.

    a [n, D], b [m, D], at least 2 rows each; all pairs are used, not random subsets of them. As an
    unbiased estimate it may be negative. Raises as `features.checked_pair` does.
    """
    a, b = checked_pair(a, b, 2)
    return _within(a) + _within(b) - 2.0 * _kernel_sum(a, b) / (len(a) * len(b))


def subset_kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 2020
) -> SubsetDistance:
    """Returns the kernel distance as it is published: over random subsets of both sets.

    a [n, D], b [m, D]; each of the `subsets` times, `size` rows of both are drawn without
    replacement. Numbers, seed and generator are those of torch-fidelity (github.com/toshas/
    torch-fidelity), which draws the same subsets.
    Raises UserError for sets smaller than `size`, and as `features.checked_pair` does.
    """
    a, b = checked_pair(a, b, 2)
    if not 2 <= size <= min(len(a), len(b)):
        least = min(len(a), len(b))
        raise UserError(f"subsets of {size} rows: legal: 2 to {least}, the rows of the smaller set")
    rng, found = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = a[rng.choice(len(a), size, replace=False)]
        y = b[rng.choice(len(b), size, replace=False)]
        found.append(kernel_distance(x, y))
    return SubsetDistance(float(np.mean(found)), float(np.std(found)))


def _within(x: np.ndarray) -> float:
    """Mean kernel over the ordered pairs of different rows."""
    own = (np.square(x).sum(axis=1) / x.shape[1] + 1.0) ** 3
    return (_kernel_sum(x, x) - float(own.sum())) / (len(x) * (len(x) - 1))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    starts = range(0, len(x), _BLOCK)
    return sum(float(((x[i : i + _BLOCK] @ y.T / x.shape[1] + 1.0) ** 3).sum()) for i in starts)
