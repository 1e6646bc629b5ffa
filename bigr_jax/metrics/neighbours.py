"""Precision and recall of generated features, by balls around neighbours.

Source: Kynkaanniemi et al. (arXiv 1904.06991), section 2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from bigr_jax.errors import UserError
from bigr_jax.metrics.features import checked_pair

_BLOCK = 1024

# rows [n, D] and [m, D] -> squared distances [n, m]
Squares = Callable[[np.ndarray, np.ndarray], np.ndarray]


def exact_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns squared distances [n, m] in float64, of rows [n, D] and [m, D].

    From differences, not |x|^2 + |y|^2 - 2 x y: equal distances are then equal in every bit.
    """
    return cdist(x, y, "sqeuclidean")


def rounded_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns what `exact_squares` does, in float32 through one matrix product on the device.

    It is what 50 000 images need, and what published numbers are made of, some in half precision
    (github.com/openai/guided-diffusion); distances that differ by less than rounding may change
    places.
    """
    return np.asarray(_product_squares(x, y))


@jax.jit
def _product_squares(x: jax.Array, y: jax.Array) -> jax.Array:
    # Distances do not depend on the origin; rounding does.
    x, y = x - y.mean(0), y - y.mean(0)
    inner = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    both = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)
    return jnp.maximum(both - 2.0 * inner, 0.0)


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = 3, squares: Squares = exact_squares
) -> dict[str, float]:
    """Returns how much of the one set lies among the other.

    generated [n, D], real [m, D], more than k rows each. Around every point of a set is a ball that
    reaches to its k-th nearest other point of that set. Precision is the share of generated points
    in balls of real ones, recall the share of real points in balls of generated ones; the surface
    belongs to the ball. `squares` are the distances, found block by block.
    Returns {"precision", "recall"}, both in [0, 1]. Raises as `features.checked_pair` does, and
    UserError for k below 1.
    """
    if k < 1:
        raise UserError(f"k={k}: legal: 1 and more")
    generated, real = checked_pair(generated, real, k + 1)
    return {
        "precision": _share_inside(generated, real, k, squares),
        "recall": _share_inside(real, generated, k, squares),
    }


def _share_inside(points: np.ndarray, centres: np.ndarray, k: int, squares: Squares) -> float:
    radii, inside = _radii(centres, k, squares), 0
    for start in range(0, len(points), _BLOCK):
        near = squares(points[start : start + _BLOCK], centres) <= radii
        inside += int(near.any(axis=1).sum())
    return inside / len(points)


def _radii(x: np.ndarray, k: int, squares: Squares) -> np.ndarray:
    """Squared distances [n] to the k-th nearest other row."""
    found = []
    for start in range(0, len(x), _BLOCK):
        block = np.array(squares(x[start : start + _BLOCK], x))
        rows = np.arange(len(block))
        block[rows, start + rows] = np.inf
        found.append(np.partition(block, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)
