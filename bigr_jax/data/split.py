"""The test part of a set that has none of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np


def held_out(labels: np.ndarray, names: Sequence[str], fraction: float) -> np.ndarray:
    """Returns the bool [N] mask of the test part: of each class the `fraction` that hashes lowest.

    Each class of two or more examples keeps at least one on either side. The hash (SHA-256 of the
    name) makes the choice the same on every machine, whatever the order of a directory listing.
    """
    test = np.zeros(len(labels), bool)
    hashes = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
    by_class = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[by_class])) + 1
    for members in np.split(by_class, borders):
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        test[sorted(members, key=lambda member: hashes[member])[:count]] = True
    return test
