"""Recommendations by counting: what is taken most, and what most often follows the last item."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Popularity:
    """Scores every item by how often it is taken, for everybody alike.

    counts  int [items]
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._counts = counts.astype(np.float32)

    def scores(self, last: np.ndarray) -> np.ndarray:
        """Returns the counts for every user, float32 [n, items]; last: int [n]."""
        return np.tile(self._counts, (len(last), 1))


class Markov:
    """Scores every item by how often it follows the last one, and where that is the same, by how
    often it is taken.

    sequences  of items, int [length] each
    counts     int [items], how often each is taken
    """

    def __init__(self, sequences: Iterable[np.ndarray], counts: np.ndarray) -> None:
        parts = [np.stack([items[:-1], items[1:]]) for items in sequences]
        before, after = np.concatenate([np.zeros((2, 0), np.int64), *parts], axis=1)
        order = np.argsort(before, kind="stable")
        self._after = after[order]
        self._starts = np.searchsorted(before[order], np.arange(len(counts) + 1))
        # Never as much as one that has followed.
        self._often = counts / (counts.sum() + 1)

    def scores(self, last: np.ndarray) -> np.ndarray:
        """Returns the scores after these items, float32 [n, items]; last: int [n]."""
        found = np.empty((len(last), len(self._often)), np.float32)
        for row, item in zip(found, last.tolist(), strict=True):
            followed = self._after[self._starts[item] : self._starts[item + 1]]
            row[:] = np.bincount(followed, minlength=len(row)) + self._often
        return found
