"""The rule by which a claim holds, against a t test of another make."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bigr_jax.lab.evidence import compare, duration, number, sentence


def seeded(values):
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("a", "b", "holds", "difference", "spread"),
    [
        ([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], True, 2.0, 0.0),
        ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], False, -2.0, 0.0),
        ([1.0, 1.0], [1.0, 1.0], False, 0.0, 0.0),
        ([3.0, 0.0], [0.0, 1.0], False, 1.0, 2.0),
        # Twice the standard error is enough of many seeds, not of three: t is 2.92.
        ([4.0, 1.0, 4.0], [1.0, 0.0, 1.0], True, 7 / 3, 2 / 3),
        ([4.0, 0.5, 4.0], [1.0, 0.0, 1.0], False, 13 / 6, 5 / 6),
        # Of one pair the difference alone counts.
        ([2.0], [1.0], True, 1.0, 0.0),
        ([1.0], [1.0], False, 0.0, 0.0),
        # The third seed of one arm has no partner.
        ([2.0, 3.0, -90.0], [1.0, 2.0], True, 1.0, 0.0),
    ],
)
def test_worked_examples(a, b, holds, difference, spread):
    found = compare(seeded(a), seeded(b))
    assert (found["holds"], found["seeds"]) == (holds, min(len(a), len(b)))
    assert found["difference"] == pytest.approx(difference)
    assert found["spread"] == pytest.approx(spread)
    assert found["value"] - found["against"] == pytest.approx(difference)


floats = st.floats(-100, 100, allow_subnormal=False)
pairs = st.lists(st.tuples(floats, floats), min_size=2, max_size=6)


@given(pairs, st.booleans(), st.floats(-10, 10))
def test_the_rule_is_a_paired_t_test(pairs, lower, margin):
    a, b = np.array(pairs).T
    sign = -1 if lower else 1
    gains = sign * (a - b) - margin
    found = compare(seeded(a), seeded(b), lower, margin)
    if np.std(gains) < 1e-6:
        assert found["holds"] == (gains.mean() > 0) or abs(gains.mean()) < 1e-5
        return
    p = stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue
    assert found["holds"] == (p < 0.05) or abs(p - 0.05) < 1e-9
    assert found["spread"] == pytest.approx(stats.sem(a - b), rel=1e-9, abs=1e-12)


def test_lower_and_margin():
    a, b = seeded([1.0, 1.1]), seeded([2.0, 2.1])
    assert compare(a, b, lower=True)["holds"] and not compare(a, b)["holds"]
    assert compare(a, b, lower=True, margin=0.9)["holds"]
    assert not compare(a, b, lower=True, margin=1.1)["holds"]
    assert compare(a, b, lower=True)["difference"] == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_supports_nothing(bad):
    for a, b in (([bad, 2.0], [1.0, 1.0]), ([2.0, 2.0], [bad, 1.0]), ([bad], [bad])):
        assert not compare(seeded(a), seeded(b))["holds"]
        assert not compare(seeded(a), seeded(b), lower=True)["holds"]


def test_no_seed_in_common():
    with pytest.raises(KeyError, match="no seed in common"):
        compare({0: 1.0}, {1: 1.0})


def test_sentences():
    claim = {"metric": "score", "lower": False, "margin": 0.0}
    claim |= compare(seeded([0.91, 0.93]), seeded([0.85, 0.85]))
    assert sentence(claim) == "score 0.92 against 0.85, difference 0.07 ± 0.01 over 2 seeds"
    claim |= {"lower": True, "margin": 0.05, "seeds": 1, "value": None}
    assert sentence(claim) == (
        "score not finite against 0.85, difference 0.07 over 1 seed, lower is better, "
        "by more than 0.05"
    )
    assert [number(x) for x in (0.123456, 1234.5, math.nan, None)] == [
        "0.1235", "1234", "not finite", "not finite",
    ]  # fmt: skip
    assert [duration(x) for x in (4.6, 130, 7200)] == ["5 s", "2 min", "2.0 h"]
