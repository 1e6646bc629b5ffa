"""The lab: what is trained and measured once, when a claim holds, what is written."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bigr_jax.errors import UserError
from bigr_jax.lab import Lab
from bigr_jax.lab import lab as module
from bigr_jax.train.run import Run

QUICK = {"train.first.duration": "2 steps", "train.second.duration": "2 steps"}


@pytest.fixture
def lab(tiny, tmp_path):
    return Lab(tiny(QUICK), str(tmp_path / "work"), str(tmp_path / "results"))


@pytest.fixture
def trained(monkeypatch):
    """Returns the list of (directory's name, stage) of all trainings from here on."""
    found, train = [], module.Run.train

    def counted(run, name, report):
        assert not report, "what an arm has to show is for the study to ask"
        found.append((str(Path(run.workdir)).rpartition("work/")[2], name))
        train(run, name, report)

    monkeypatch.setattr(module.Run, "train", counted)
    return found


@pytest.fixture
def stub(monkeypatch):
    """Replaces training by nothing: directories and settings alone are looked at."""
    monkeypatch.setattr(module.Lab, "_fit", lambda self, run, name: None)


def again(lab):
    return Lab(lab.config, lab.workdir, lab.results)


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


def test_seeds_are_those_that_the_config_asks_for(lab, tiny, tmp_path):
    assert lab.seeds == range(2)
    with pytest.raises(UserError, match=r"config\.study\.seeds=0 must be 1 or more"):
        _ = Lab(tiny({"study.seeds": "0"}), str(tmp_path), str(tmp_path)).seeds


def test_a_claim_is_written_with_its_figures(lab):
    record(lab, "a", [3.0, 4.0, 5.0])
    record(lab, "b", [1.0, 2.5, 3.0])
    assert lab.claim("a beats b", "score", "a", "b", margin=0.5) is True
    assert lab.claim("b is lower than 2", "score", "b", np.float32(2), lower=True) is False
    first, second = read(lab)["claims"]
    assert list(first)[:2] == ["text", "holds"]
    error = np.std([2.0, 1.5, 2.0], ddof=1) / math.sqrt(3)
    assert first == {
        "text": "a beats b", "holds": True, "metric": "score", "better": "a", "than": "b",
        "lower": False, "margin": 0.5, "value": 4.0, "against": pytest.approx(6.5 / 3),
        "difference": pytest.approx(5.5 / 3), "spread": pytest.approx(error), "seeds": 3,
    }  # fmt: skip
    assert (second["than"], second["against"], second["lower"]) == (2.0, 2.0, True)
    assert second["difference"] == pytest.approx(6.5 / 3 - 2)


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


def test_directories_say_what_is_learnt(lab, stub):
    def where(changes, seed=0, stage=None):
        run = lab.train(f"{changes}{stage}", changes, seed, stage)
        return str(Path(run.workdir).relative_to(lab.workdir))

    assert where({}) == where({"sample.noise": "0.3", "report.bias": "2.0"}) == "base-seed0"
    assert where({}, 3) == "base-seed3"
    # What is the setting already is no change.
    assert where({"method.noise": "0.1"}) == "base-seed0"
    assert where({}, 1, "second") == "second/base-seed1"
    both = {"method.noise": "0.5", "train.first.duration": "3 steps"}
    assert where(both) == "method.noise=0.5,train.first.duration=3_steps-seed0"
    assert where(dict(reversed(both.items()))) == where(both)
    odd = where({"method.poison": "a/b:c"})
    assert odd.startswith("method.poison=a_b_c-") and odd.endswith("-seed0")
    assert odd != where({"method.poison": "a_b_c"})
    names = [where({"method.poison": "x" * 200 + end}) for end in "yz"]
    assert len(set(names)) == 2 and max(map(len, names)) < 130


def test_an_arm_is_one_thing(lab, stub):
    lab.train("a", {"method.noise": "0.5"})
    lab.train("a", {"method.noise": "0.5"}, seed=1)
    with pytest.raises(ValueError, match=r"arm 'a' was \(None, {'method.noise': '0.5'}\) before"):
        lab.train("a", {"method.noise": "0.6"})
    with pytest.raises(ValueError, match="arm 'a' was"):
        lab.train("a", {"method.noise": "0.5"}, stage="first")
    with pytest.raises(ValueError, match="seed is an argument of its own"):
        lab.train("b", {"seed": "1"})
    assert read(lab)["arms"] == {"a": {"method.noise": "0.5"}}


def test_a_study_may_be_asked_for_some_of_its_arms(lab, tiny):
    known = {"a": {}, "b": {"method.noise": "0.5"}, "c": {"method.noise": "0.0"}}
    assert lab.arms(known) == known and list(lab.arms(known)) == ["a", "b", "c"]

    def asked(names):
        return Lab(tiny({"study.arms": names}), lab.workdir, lab.results)

    few = asked("('c', 'a')")
    # In the study's order, whatever the order asked for.
    assert list(few.arms(known).items()) == [("a", {}), ("c", {"method.noise": "0.0"})]
    record(few, "a", [2.0])
    record(few, "c", [1.0])
    claims = [("a", "c"), ("a", "b"), ("b", "a"), ("b", 0.0), ("c", 0.0)]
    assert [few.claim("is better", "score", *pair) for pair in claims] == [
        True, False, False, False, True,
    ]  # fmt: skip
    said = [(claim["better"], claim["than"]) for claim in read(few)["claims"]]
    assert said == [("a", "c"), ("c", 0.0)]
    # What no study knows is a mistake in the study, not an arm left out.
    with pytest.raises(KeyError, match="nothing recorded of metric 'score' for arm 'd'"):
        few.claim("d is better", "score", "d", "a")
    with pytest.raises(UserError, match=r"^config\.study\.arms='bb' is not known \(did you mean"):
        asked("('a', 'bb')").arms(known)


def test_mistakes_name_the_arm_and_the_seed(lab, stub):
    with pytest.raises(UserError, match=r"^arm 'a', seed 3: config\.method\.nois is not a key"):
        lab.run("a", {"method.nois": "1"}, 3)
    with pytest.raises(UserError, match=r"^arm 'b', seed 0: --stage=thrd is no stage"):
        lab.train("b", {}, stage="thrd")
    other = r"^arm 'c', seed 0: config\.train\.first\.ema is none of stage 'second'"
    with pytest.raises(UserError, match=other):
        lab.train("c", {"train.first.ema": "0.5"}, stage="second")
    shape = (
        r"^arm 'd', seed 0: stage 'first' is taken from .*/base-seed0, but params/kernel is "
        r"float32\[16, 10\] there and float32\[64, 10\] here; give the settings of that run, or "
        r"train every stage here$"
    )
    with pytest.raises(UserError, match=shape):
        lab.train("d", {"data.size": "8"}, stage="second")


def test_a_base_on_another_mesh_is_refused(lab, tmp_path):
    base = types.SimpleNamespace(mesh=types.SimpleNamespace(shape={"data": 2}), workdir="elsewhere")
    with pytest.raises(UserError, match=r"^mesh {'data': 1, .*} is not that of elsewhere, {'data'"):
        Run(lab.config, str(tmp_path), base=base, stage="second")


def test_a_loss_that_is_not_finite_ends_the_study_in_one_line(lab, trained):
    changes = {"method.poison": "loss", "method.at": "2"}
    with pytest.raises(UserError) as caught:
        lab.train("broken", changes, seed=1, stage="first")
    text = str(caught.value)
    assert text.startswith("arm 'broken', seed 1: the loss of stage 'first' is nan at step 2;")
    assert "\n" not in text


def test_arms_of_one_stage_share_the_others(lab, trained):
    a = lab.train("a", {"train.second.ema": "0.5"}, seed=1, stage="second")
    b = lab.train("b", {"train.second.ema": "0.0"}, seed=2, stage="second")
    names = ["second/train.second.ema=0.5-seed1", "second/train.second.ema=0.0-seed2"]
    assert trained == [("base-seed0", "first"), *((name, "second") for name in names)]
    assert (a.config.seed, a.base.config.seed, a.own) == (1, 0, ["second"])
    assert a.base is b.base
    alone = Run(lab.config, str(Path(lab.workdir, "base-seed0")))
    expected = jax.tree.leaves(alone.variables("first"))
    found = jax.tree.leaves(a.given("second")["first"])
    assert all(np.array_equal(x, y) for x, y in zip(expected, found, strict=True))
    kernels = [run.variables("second")["params"]["kernel"] for run in (a, b)]
    assert not np.array_equal(*kernels)
    # All of it is found again, and the arm without changes has the base's first stage.
    del trained[:]
    lab = again(lab)
    lab.train("a", {"train.second.ema": "0.5"}, seed=1, stage="second")
    lab.train("whole")
    assert trained == [("base-seed0", "second")]
    entries = [
        entry
        for name in ("base-seed0", names[0])
        for entry in json.loads(Path(lab.workdir, name, "results.json").read_text())[
            "stages"
        ].values()
    ]
    lab.record("a", "score", 1.0)
    assert len(entries) == 3
    assert read(lab)["seconds"] == pytest.approx(sum(e["seconds"] for e in entries), abs=0.11)


def test_what_is_measured_once_is_not_measured_again(lab, stub, tiny, capsys):
    calls = []

    def measure(lab, arm, changes=None, seed=0, figure=None):
        def function():
            calls.append((arm, seed))
            if figure:
                lab.figure(figure, np.full((4, 5, 3), len(calls), np.uint8))
            return {"score": len(calls), "other": math.inf}

        lab.train(arm, changes, seed)
        return lab.measure(arm, seed, function)

    assert measure(lab, "a") == {"score": 1.0, "other": math.inf}
    measure(lab, "a", seed=1, figure="drawn")
    assert lab.values("a", "score") == {0: 1.0, 1: 2.0}
    assert capsys.readouterr().err.startswith("a, seed 0: measured in 0.")
    later = again(lab)
    assert measure(later, "a") == {"score": 1.0, "other": math.inf}
    measure(later, "a", seed=1, figure="drawn")
    assert capsys.readouterr().err == "a, seed 0: measured before\na, seed 1: measured before\n"
    assert calls == [("a", 0), ("a", 1)]
    # The figure of a measurement that is skipped is there all the same.
    first, second = read(lab), read(later)
    assert first == second and first["figures"] == ["drawn"] and first["seeds"] == [0, 1]
    with Image.open(Path(lab.results, "tiny-drawn.png")) as image:
        assert np.array_equal(np.asarray(image), np.full((4, 5, 3), 2, np.uint8))
    # More seeds or fewer arms change nothing in one; any other setting, and a lost figure, do.
    others = {**QUICK, "study.seeds": "9", "study.arms": "('a',)"}
    measure(Lab(tiny(others), lab.workdir, lab.results), "a")
    assert len(calls) == 2
    measure(again(lab), "a", {"sample.noise": "0.3"})
    measure(Lab(tiny({**QUICK, "report.bias": "1"}), lab.workdir, lab.results), "a")
    assert len(calls) == 4
    Path(lab.workdir, "figures", "drawn.png").unlink()
    measure(again(lab), "a", seed=1, figure="drawn")
    assert len(calls) == 5


def test_a_changed_experiment_is_measured_anew(lab, stub):
    values = iter([1.0, 2.0])
    lab.measure("a", 0, lambda: {"score": next(values)})
    later = again(lab)
    later._source += "\n# changed"
    assert later.measure("a", 0, lambda: {"score": next(values)}) == {"score": 2.0}


def test_a_measurement_that_fails_keeps_the_others(lab, stub):
    lab.measure("a", 0, lambda: {"score": 1.0})
    with pytest.raises(ZeroDivisionError):
        lab.measure("a", 1, lambda: {"score": 1 / 0})
    assert again(lab).measure("a", 0, lambda: pytest.fail("again")) == {"score": 1.0}


def test_what_is_written_names_no_machine(lab, tmp_path):
    record(lab, "a", [1.0])
    path = lab.write()
    assert path == str(tmp_path / "results" / "tiny.json")
    text = Path(path).read_text()
    written = json.loads(text)
    assert (written["slug"], written["variant"]) == ("tiny", "small")
    assert written["config"]["slug"] == "tiny" and written["config"]["method.noise"] == 0.1
    assert written["environment"]["devices"].endswith("(cpu)")
    assert "command" not in written["environment"]
    for secret in (str(tmp_path), str(Path(__file__).parent), str(Path.home()), "pytest"):
        assert secret not in text
    with Image.open(tmp_path / "results" / "tiny.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
