"""Intersection over union against float64, over batches, with classes and places left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.api import Sum
from bigr_jax.metrics.segmentation import overlaps

CLASSES = 5
_overlaps = jax.jit(overlaps, static_argnums=3)


def oracle(found: np.ndarray, wanted: np.ndarray, asked: np.ndarray) -> float:
    ious = []
    pairs = list(zip(found[asked].tolist(), wanted[asked].tolist(), strict=True))
    for label in range(CLASSES):
        either = [pair for pair in pairs if label in pair]
        if either:
            ious.append(sum(a == b for a, b in either) / len(either))
    return float(np.mean(ious)) if ious else 0.0


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, CLASSES), st.floats(0, 1))
def test_sums_over_batches_are_those_of_all_places(seed: int, kinds: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    found, wanted = rng.integers(0, kinds, (2, 3, 2, 4, 7))
    asked = rng.random(wanted.shape) < share
    # What is not asked for has any number.
    wanted = np.where(asked, wanted, rng.choice([0, 255], wanted.shape))
    sums = [_overlaps(*batch, CLASSES) for batch in zip(found, wanted, asked, strict=True)]
    whole = Sum(*(np.sum(part, 0) for part in zip(*sums, strict=True)))
    assert not whole.weight[kinds:].any()
    assert whole.metric() == pytest.approx(oracle(found, wanted, asked), rel=1e-12)


def test_whole_counts_beyond_what_float32_holds() -> None:
    places = (1 << 24) + 1
    same = jnp.zeros(places, jnp.uint8)
    found = _overlaps(same, same, jnp.ones(places, bool), 1)
    assert int(found.value[0]) == int(found.weight[0]) == places
