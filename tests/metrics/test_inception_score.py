"""Inception Score by both protocols, against sums in float64 and in closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.metrics.inception_score import inception_score


def by_loops(parts):
    scores = []
    for logits in parts:
        p = [np.exp(row - row.max()) for row in np.float64(logits)]
        p = [row / row.sum() for row in p]
        mean = sum(p) / len(p)
        kl = [sum(a * np.log(a / b) for a, b in zip(row, mean, strict=True)) for row in p]
        scores.append(np.exp(sum(kl) / len(kl)))
    return np.mean(scores), np.std(scores)


def drawn(rows, classes=6):
    return 2 * np.random.default_rng(rows).standard_normal((rows, classes)).astype(np.float32)


@pytest.mark.parametrize(("rows", "chunk"), [(12, 4), (13, 4), (3, 5000), (1, 1)])
def test_adm_takes_parts_in_order(rows, chunk):
    logits = drawn(rows)
    wanted = by_loops([logits[i : i + chunk] for i in range(0, rows, chunk)])
    np.testing.assert_allclose(inception_score(logits, chunk=chunk), wanted, rtol=1e-10)


@pytest.mark.parametrize(("rows", "splits"), [(20, 10), (23, 4), (7, 10)])
def test_torch_fidelity_shuffles(rows, splits):
    logits = drawn(rows)
    mixed = logits[np.random.RandomState(2020).permutation(rows)]
    edges = sorted({i * rows // splits for i in range(splits + 1)})
    wanted = by_loops([mixed[a:b] for a, b in itertools.pairwise(edges)])
    found = inception_score(logits, "torch-fidelity", splits=splits)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert found.mean != pytest.approx(inception_score(logits, chunk=rows // 2).mean, rel=1e-6)


def test_in_closed_form():
    # Every image the same: 1. Every class once, surely: the number of classes.
    assert inception_score(np.ones((9, 4)) * [[1, 2, 3, 4]]).mean == pytest.approx(1)
    assert inception_score(np.zeros((9, 4))).mean == pytest.approx(1)
    sure = np.where(np.eye(5), 0.0, -1e4)
    assert inception_score(sure).mean == pytest.approx(5)
    # Of a class that nobody is of, all is finite.
    assert inception_score(sure[:4]).mean == pytest.approx(4)


@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(2, 9))
def test_between_one_and_the_number_of_classes_and_blind_to_shifts(seed, rows, classes):
    logits = 5 * np.random.default_rng(seed).standard_normal((rows, classes))
    found = inception_score(logits).mean
    assert 1 - 1e-9 <= found <= classes + 1e-9
    assert inception_score(logits + 100).mean == pytest.approx(found)
    assert inception_score(logits[::-1]).mean == pytest.approx(found)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"protocol='amd' is not known.*legal: adm, torch-fidelity"):
        inception_score(drawn(4), "amd")
    with pytest.raises(UserError, match="logits: 0 rows given"):
        inception_score(np.zeros((0, 4)))
    with pytest.raises(UserError, match="logits: 1 of 2 rows hold"):
        inception_score(np.array([[0, np.nan], [0, 1]]))
