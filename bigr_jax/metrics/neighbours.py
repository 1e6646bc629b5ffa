"""Precision and recall of generated features, by balls around neighbours.

Source: Kynkaanniemi et al. (arXiv 1904.06991), section 2.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from bigr_jax.errors import UserError
from bigr_jax.metrics.features import checked_pair

_BLOCK = 1024


def precision_recall(generated: np.ndarray, real: np.ndarray, k: int = 3) -> dict[str, float]:
    """Returns how much of the one set lies among the other.

    generated [n, D], real [m, D], more than k rows each. Around every point of a set is a ball that
    reaches to its k-th nearest other point of that set. Precision is the share of generated points
    in balls of real ones, recall the share of real points in balls of generated ones; the surface
    belongs to the ball.
    Returns {"precision", "recall"}, both in [0, 1]. Raises as `features.checked_pair` does, and
    UserError for k below 1.
    """
    if k < 1:
        raise UserError(f"k={k}: legal: 1 and more")
    generated, real = checked_pair(generated, real, k + 1)
    return {
        "precision": _share_inside(generated, real, k),
        "recall": _share_inside(real, generated, k),
    }


def _share_inside(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    radii, inside = _radii(centres, k), 0
    for start in range(0, len(points), _BLOCK):
        near = _squares(points[start : start + _BLOCK], centres) <= radii
        inside += int(near.any(axis=1).sum())
    return inside / len(points)


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distances [n] to the k-th nearest other row."""
    found = []
    for start in range(0, len(x), _BLOCK):
        squares = _squares(x[start : start + _BLOCK], x)
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf
        found.append(np.partition(squares, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Differences, not |x|^2 + |y|^2 - 2 x y: equal distances are then equal in every bit.
    return cdist(x, y, "sqeuclidean")
