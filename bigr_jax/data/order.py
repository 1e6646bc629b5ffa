"""The order in which training sees the examples."""

from __future__ import annotations

import functools
import threading

import numpy as np


class Order:
    """The endless shuffled sequence of examples: epoch after epoch, each example once in each."""

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, expected at least 1")
        self.length = length
        self._seed = seed
        self._lock = threading.Lock()
        self._epoch = functools.lru_cache(maxsize=4)(self._permutation)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Returns the example indices, int64 [n], at any positions, int64 [n] from 0."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.length)
        indices = np.empty(epochs.shape, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            with self._lock:
                permutation = self._epoch(int(epoch))
            indices[here] = permutation[places[here]]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        # NumPy promises the raw stream of a bit generator for ever, that of permutation() not.
        bits = np.random.Philox(key=np.asarray([self._seed % 2**64, epoch], np.uint64))
        return np.argsort(bits.random_raw(self.length), kind="stable")
