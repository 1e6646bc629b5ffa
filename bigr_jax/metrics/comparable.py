"""Images against a reference by the protocol that published numbers follow.

Source: the evaluator of guided-diffusion (github.com/openai/guided-diffusion, evaluations), whose
FID, sFID, Inception Score, precision and recall papers on class-conditional ImageNet quote; KID as
torch-fidelity has it, which that evaluator lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.metrics.frechet import Moments, Stream, frechet
from bigr_jax.metrics.inception_score import inception_score
from bigr_jax.metrics.kernel import SUBSET_SIZE, subset_kernel_distance
from bigr_jax.metrics.neighbours import precision_recall, rounded_squares
from bigr_jax.metrics.reference import Reference

PROTOCOL = (
    "guided-diffusion (ADM): Inception-v3 of 2015, TensorFlow 1 resize, FID on pool, sFID on "
    "mixed_6, IS over parts of 5000, precision and recall k=3; KID: torch-fidelity"
)


class Features(NamedTuple):
    """What the metrics read of images, float32: [n, 2048], [n, 2023] and [n, 1008], see
    `models.inception.Taps`.
    """

    pool: np.ndarray
    spatial: np.ndarray
    logits: np.ndarray


class Summary(NamedTuple):
    """All that is kept of a set of images; its pooled features and logits where asked for."""

    pool: Moments
    spatial: Moments
    features: np.ndarray | None
    logits: np.ndarray | None


Read = Callable[[np.ndarray], Features]


def summary(batches: Iterable[np.ndarray], read: Read, name: str, keep: bool = True) -> Summary:
    """Returns what is to be known of images, uint8 [n, H, W, 3] a batch, each looked at once.

    keep  whether the features of every image are kept too: 12 kB each
    Raises UserError for fewer than 2 images, calling them `name`.
    """
    pool, spatial = Stream(name), Stream(name)
    features, logits = [], []
    for images in batches:
        found = read(images)
        pool.add(found.pool)
        spatial.add(found.spatial)
        if keep:
            features.append(found.pool)
            logits.append(found.logits)
    moments = pool.moments(), spatial.moments()
    if not keep:
        return Summary(*moments, None, None)
    return Summary(*moments, np.concatenate(features), np.concatenate(logits))


def compare(samples: Summary, reference: Reference, read: Read, size: int) -> dict[str, float]:
    """Returns {"fid", "sfid", "inception_score", "precision", "recall", "kid", ...}.

    samples  with features and logits
    size     images that are read at once
    Of a reference without images, precision, recall and KID are left out; of one with statistics of
    the pool alone, sFID too. Statistics that a file holds count before those of its images, which
    may be a part of the whole. Raises UserError for a reference of other features.
    """
    assert samples.features is not None and samples.logits is not None
    pool, spatial, images = reference
    real = None
    if images is not None:
        shown = summary(images.batches(size), read, "reference")
        real = shown.features
        if pool is None:
            pool, spatial = shown.pool, shown.spatial
    assert pool is not None
    found = {"fid": _distance(samples.pool, pool, "mu")}
    if spatial is not None:
        found["sfid"] = _distance(samples.spatial, spatial, "mu_s")
    score = inception_score(samples.logits)
    found |= {"inception_score": score.mean, "inception_score_std": score.deviation}
    if real is not None:
        found |= precision_recall(samples.features, real, 3, rounded_squares)
        kid_size = min(SUBSET_SIZE, len(real), len(samples.features))
        kid = subset_kernel_distance(samples.features, real, size=kid_size)
        found |= {"kid": kid.mean, "kid_std": kid.deviation}
    return found


def _distance(samples: Moments, reference: Moments, name: str) -> float:
    if samples.mean.shape != reference.mean.shape:
        raise UserError(
            f"the reference is of other features: {name!r} has {reference.mean.size} numbers, "
            f"wanted {samples.mean.size}"
        )
    return frechet(samples, reference)
