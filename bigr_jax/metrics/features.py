"""What metrics on features ask of them."""

from __future__ import annotations

import numpy as np

from bigr_jax.errors import UserError


def checked(features: np.ndarray, least: int, name: str) -> np.ndarray:
    """Returns features [n, D] in float64.

    Raises:
      ValueError: they are not [n, D].
      UserError: fewer than `least` rows, or a number that is not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"{name} {x.shape} are not [n, D]")
    if len(x) < least:
        raise UserError(f"{name}: {len(x)} rows given, legal: {least} and more")
    bad = int((~np.isfinite(x).all(axis=1)).sum())
    if bad:
        raise UserError(f"{name}: {bad} of {len(x)} rows hold numbers that are not finite")
    return x


def checked_pair(
    a: np.ndarray, b: np.ndarray, least: int, names: tuple[str, str] = ("generated", "real")
) -> tuple[np.ndarray, np.ndarray]:
    """Returns two sets of features [n, D] and [m, D] in float64.

    Raises as `checked` does, and ValueError where D differs.
    """
    a, b = checked(a, least, names[0]), checked(b, least, names[1])
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} {a.shape} and {names[1]} {b.shape} differ in features")
    return a, b
