"""The lab: what is recorded, when a claim holds, which arms share a training, what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigr_jax import registry
from bigr_jax.lab import Lab
from bigr_jax.lab import lab as module


@pytest.fixture
def lab(tiny, tmp_path):
    return Lab(tiny(), str(tmp_path / "work"), str(tmp_path / "results"))


def record(lab, arm, values, metric="score"):
    for seed, value in enumerate(values):
        lab.record(arm, metric, value, seed)


def read(lab):
    return json.loads(Path(lab.write()).read_text())


def test_values_are_by_seed(lab):
    record(lab, "a", [1.0, 2.0])
    lab.record("a", "other", 9.0)
    lab.record("b", "score", np.float32(3))
    assert lab.values("a", "score") == {0: 1.0, 1: 2.0}
    assert lab.values("a", "other") == {0: 9.0}
    assert lab.values("b", "score") == {0: 3.0}


@pytest.mark.parametrize(
    ("a", "b", "holds", "difference", "spread"),
    [
        ([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], True, 2.0, 0.0),
        ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], False, -2.0, 0.0),
        ([1.0, 1.0], [1.0, 1.0], False, 0.0, 0.0),
        # The mean of 3 and -1 is 1, their standard error 2: no claim, in spite of the mean.
        ([3.0, 0.0], [0.0, 1.0], False, 1.0, 2.0),
        ([4.0, 1.0, 4.0], [1.0, 0.0, 1.0], True, 7 / 3, 2 / 3),
        ([2.0], [1.0], True, 1.0, 0.0),
        ([1.0], [1.0], False, 0.0, 0.0),
        # Pairs alone count: the third seed of one arm has no partner.
        ([2.0, 3.0, -90.0], [1.0, 2.0], True, 1.0, 0.0),
    ],
)
def test_a_claim_holds_beyond_the_error_of_paired_differences(lab, a, b, holds, difference, spread):
    record(lab, "a", a)
    record(lab, "b", b)
    assert lab.claim("a beats b", "score", "a", "b") is holds
    (claim,) = read(lab)["claims"]
    seeds = min(len(a), len(b))
    assert (claim["text"], claim["holds"], claim["seeds"]) == ("a beats b", holds, seeds)
    assert claim["difference"] == pytest.approx(difference)
    assert claim["spread"] == pytest.approx(spread)
    assert claim["value"] - claim["against"] == pytest.approx(difference)
    assert claim["value"] == pytest.approx(sum(a[:seeds]) / seeds)


def test_what_was_not_recorded_is_no_evidence(lab):
    record(lab, "a", [1.0])
    with pytest.raises(KeyError, match="nothing recorded of metric 'score' for arm 'b'"):
        lab.claim("a beats b", "score", "a", "b")
    with pytest.raises(KeyError, match="nothing recorded of metric 'scor' for arm 'a'"):
        lab.values("a", "scor")
    lab.record("b", "score", 0.0, seed=7)
    with pytest.raises(KeyError, match="share no seed"):
        lab.claim("a beats b", "score", "a", "b")
    assert read(lab)["claims"] == []


@pytest.mark.parametrize(("a", "b"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, -math.inf)])
def test_what_is_not_finite_supports_nothing(lab, a, b):
    record(lab, "a", [a, 2.0])
    record(lab, "b", [b, 1.0])
    assert lab.claim("a beats b", "score", "a", "b") is False
    text = Path(lab.write()).read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [record["value"] for record in written["records"]].count(None) == 1
    assert written["claims"][0]["difference"] is None


def test_a_study_trains_once_what_its_arms_share(lab, tiny, tmp_path, monkeypatch):
    trained = []
    fit = module.Run.train

    def train(run, name):
        trained.append((run.workdir, name, run.is_finished(name)))
        fit(run, name)

    monkeypatch.setattr(module.Run, "train", train)
    registry.load(lab.config.slug).study(lab.config, lab)
    work = str(tmp_path / "work" / "base-seed0")
    # The arms differ in what training does not see; the second finds all of it trained.
    assert trained == [(work, name, done) for done in (False, True) for name in ("first", "second")]
    assert lab.values("noisy", "spread") == {0: 0.5, 1: 0.5}
    assert lab.values("quiet", "spread") == {0: 0.0, 1: 0.0}
    path = lab.write()
    assert path == str(tmp_path / "results" / "tiny.json")
    written = read(lab)
    assert [claim["holds"] for claim in written["claims"]] == [True]
    assert len(written["records"]) == 4 and written["config"]["method.noise"] == 0.1
    assert written["environment"]["devices"]


def test_arms_that_learn_differently_are_trained_apart(lab, tmp_path):
    loud = lab.train("loud", {"method.noise": "0.5", "train.second.duration": "2 steps"})
    assert loud.workdir == str(tmp_path / "work" / "loud-seed0")
    assert (loud.config.method.noise, loud.is_finished("second")) == (0.5, True)
    other = lab.train("loud", {"method.noise": "0.5", "train.second.duration": "2 steps"}, seed=1)
    assert other.workdir == str(tmp_path / "work" / "loud-seed1")
    assert other.config.seed == 1
    kernels = [run.variables("second")["params"]["kernel"] for run in (loud, other)]
    assert not np.array_equal(*kernels)


def test_figures_are_written_beside_the_numbers(lab, tmp_path):
    picture = np.zeros((3, 5, 3), np.uint8)
    picture[1, 2] = 7, 8, 9
    lab.figure("samples", picture)
    lab.write()
    with Image.open(tmp_path / "results" / "tiny-samples.png") as image:
        assert np.array_equal(np.asarray(image), picture)
