"""How good generated images are, in the eyes of a classifier trained apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bigr_jax.api import Array
from bigr_jax.metrics.agreement import logits_agreement, read_in_batches
from bigr_jax.metrics.frechet import frechet, moments
from bigr_jax.metrics.kernel import kernel_distance
from bigr_jax.metrics.neighbours import precision_recall


def quality(
    generated: np.ndarray,
    labels: np.ndarray | None,
    real: np.ndarray,
    read: Callable[[Array], tuple[Array, Array]],
    size: int = 250,
) -> dict[str, float]:
    """Returns how generated images compare to real ones.

    generated  uint8, or float in [0, 1], [n, H, W, C], n >= 4
    labels     int [n], the classes asked for; None: they are not measured
    real       as generated, [m, H, W, C]
    read       images float32 [size, H, W, C] in [0, 1] -> (logits [size, classes], features
               [size, D])
    Returns {"frechet", "kernel", "precision", "recall"}, distances and shares in the features of
    `read`, and with labels "agreement" and "worst_class" of its logits. The Frechet distance is
    biased upwards by few images, precision and recall depend on their numbers: compare only what
    was measured with equal n and equal m. Raises ValueError for images of different shapes, and as
    `features.checked_pair` does.
    """
    if generated.ndim != 4 or generated.shape[1:] != real.shape[1:]:
        raise ValueError(f"generated {generated.shape} and real {real.shape} images differ in size")
    logits, features = read_in_batches(read, generated, size)
    _, wanted = read_in_batches(read, real, size)
    found = {} if labels is None else logits_agreement(logits, labels)
    distance = frechet(moments(features, "generated"), moments(wanted, "real"))
    found |= {"frechet": distance, "kernel": kernel_distance(features, wanted)}
    return {**found, **precision_recall(features, wanted)}
