"""Pictures of evidence: their size follows what they hold, and what they hold is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigr_jax.lab import plots


def records(arms, metrics, value=lambda arm, seed: float(arm + seed)):
    return [
        {"arm": arm, "metric": metric, "seed": seed, "value": value(index, seed)}
        for index, arm in enumerate(arms)
        for metric in metrics
        for seed in range(2)
    ]


def has(picture, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(picture.astype(int) - wanted).max(-1) <= 2).any())


@pytest.fixture(scope="module")
def plain():
    return plots.overview("tiny:small", records(["a", "b"], ["score"]))


def test_a_picture_is_the_same_each_time(plain):
    again = plots.overview("tiny:small", records(["a", "b"], ["score"]))
    assert plain.dtype == np.uint8 and plain.shape[-1] == 3
    assert np.array_equal(plain, again)


def test_every_arm_has_its_colour(plain):
    assert [has(plain, colour) for colour in plots.COLOURS[:3]] == [True, True, False]


def test_what_is_the_same_everywhere_has_no_panel_unless_it_is_claimed(plain):
    same = [{**row, "metric": "same", "value": 3.0} for row in records(["a", "b"], ["x"])]
    both = records(["a", "b"], ["score"]) + same
    assert np.array_equal(plots.overview("tiny:small", both), plain)
    claim = dict(
        text="alike", holds=False, metric="same", lower=False, margin=0.0,
        value=3.0, against=3.0, difference=0.0, spread=0.0, seeds=2,
    )  # fmt: skip
    claimed = plots.overview("tiny:small", both, [claim])
    assert claimed.size > 1.2 * plain.size


def test_numbered_metrics_are_one_curve_per_arm(plain):
    names = [f"probe/{i}" for i in range(9)]
    found = plots.overview("tiny:small", records(["a", "b"], ["score", *names]))
    two = plots.overview("tiny:small", records(["a", "b"], ["score", "other"]))
    assert found.shape == two.shape


def test_claims_are_written_below_in_the_colour_of_their_outcome(plain):
    claim = dict(
        text="a text " * 30, holds=True, metric="score", lower=False, margin=0.0,
        value=1.0, against=None, difference=math.nan, spread=0.1, seeds=2,
    )  # fmt: skip
    claims = [claim, {**claim, "holds": False}]
    found = plots.overview("tiny:small", records(["a", "b"], ["score"]), claims)
    assert found.shape[0] > plain.shape[0]
    assert has(found, plots.HOLDS) and has(found, plots.FAILS)
    assert not has(plain, plots.HOLDS) and not has(plain, plots.FAILS)


def test_many_metrics_wrap_and_long_names_make_room():
    wide = plots.overview("t", records(["a"], [str(i) for i in range(3)]))
    tall = plots.overview("t", records(["a"], [str(i) for i in range(7)]))
    assert tall.shape[1] == wide.shape[1] and tall.shape[0] > 2 * (wide.shape[0] - 150)
    named = plots.overview("t", records(["an arm with a long name of many words " * 3], ["x"]))
    assert named.shape[0] > plots.overview("t", records(["a"], ["x"])).shape[0] + 30


def test_values_that_are_not_finite_are_said_not_drawn():
    rows = records(["a", "b"], ["score"], lambda arm, seed: 1.0 if arm else None)
    found = plots.overview("t", rows)
    assert not has(found, plots.COLOURS[0]) and has(found, plots.COLOURS[1])
    assert plots.overview("nothing", []).size


def test_curves_have_bands_of_their_runs():
    runs = np.array([[0.0, 1.0, 2.0], [0.5, 1.5, 1.0]])
    band = plots.lines("t", [0, 1, 2], {"a": runs, "b": runs + 1}, "layer", "accuracy")
    bare = plots.lines("t", [0, 1, 2], {"a": runs.mean(0), "b": runs[:1] + 1}, "x", "y")
    assert band.shape == bare.shape and band.dtype == np.uint8
    inked = [(picture < 250).any(-1).sum() for picture in (band, bare)]
    assert inked[0] > inked[1] * 1.3
    assert has(band, plots.COLOURS[0]) and has(band, plots.COLOURS[1])
