"""Inception Score: how sure a classifier is of each image, and how varied what it sees.

Source: Salimans et al. (arXiv 1606.03498), section 4. The value depends on how the images are cut
into parts, on which published protocols differ, and on the classifier, that of FID.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from bigr_jax.errors import one_of
from bigr_jax.metrics.features import checked

PROTOCOLS = ("adm", "torch-fidelity")
_SHUFFLED_BY = 2020


class Score(NamedTuple):
    """Mean and standard deviation of the score over the parts."""

    mean: float
    deviation: float


def inception_score(
    logits: np.ndarray, protocol: str = "adm", *, chunk: int = 5000, splits: int = 10
) -> Score:
    """Returns exp(mean KL(p(y | x) || p(y))) of every part of the images, over the parts.

    logits    [n, classes] without the last layer's bias, in the order of the images
    protocol  "adm": parts of `chunk` images in their order, a shorter one at the end where `chunk`
              does not divide n (github.com/openai/guided-diffusion); "torch-fidelity": `splits`
              equal parts of the images in one fixed random order
    Raises UserError for another protocol, and as `features.checked` does.
    """
    if protocol not in PROTOCOLS:
        raise one_of("protocol", protocol, PROTOCOLS)
    x = checked(logits, 1, "logits")
    count = len(x)
    if protocol == "adm":
        edges = [*range(0, count, chunk), count]
    else:
        # The generator is part of the protocol.
        x = x[np.random.RandomState(_SHUFFLED_BY).permutation(count)]
        edges = sorted({part * count // splits for part in range(splits + 1)})
    log_p = log_softmax(x, axis=1)
    scores = [_score(log_p[a:b]) for a, b in itertools.pairwise(edges)]
    return Score(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    # A class that none of the images can be of adds nothing: its p are 0.
    mean = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - mean)).sum(axis=1).mean()))
