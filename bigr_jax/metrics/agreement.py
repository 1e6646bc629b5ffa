"""How often a classifier reads drawn images as the classes they were asked for."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from bigr_jax.api import Array


def agreement(
    predict: Callable[[Array], Array], images: np.ndarray, labels: np.ndarray, size: int = 250
) -> dict[str, float]:
    """Returns the share of images whose likeliest class is the label, and the lowest share of a
    class.

    predict  images float32 [size, H, W, C] in [0, 1] -> logits [size, classes]
    images   uint8, or float in [0, 1], [n, H, W, C]; labels int [n]
    Returns {"agreement", "worst_class"}, both in [0, 1].
    """
    if images.dtype == np.uint8:
        images = images / np.float32(255)
    run, parts = jax.jit(predict), []
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        # One shape, so that one program serves all.
        full = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
        parts.append(np.asarray(run(full))[: len(rows)].argmax(-1))
    right = np.concatenate(parts) == labels
    worst = min(right[labels == label].mean() for label in np.unique(labels))
    return {"agreement": float(right.mean()), "worst_class": float(worst)}
