"""What a stage does about a step that is not finite: ends, skips it, or goes back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from bigr_jax.errors import UserError
from bigr_jax.train import commands, guard
from bigr_jax.train.guard import Course
from bigr_jax.train.loop import Interrupted
from bigr_jax.train.run import Run
from bigr_jax.train.writer import Metrics

BAD = 7


def rows(workdir):
    found = (json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in found if "loss" in row}


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """The rows of a run in which all is finite."""
    workdir = tmp_path_factory.mktemp("straight")
    commands.train(tiny(), str(workdir), "first")
    return rows(workdir)


@pytest.fixture(scope="module")
def poisoned(tiny, straight):
    """Returns a function (policy) -> the config of a run whose batch of step 7 is bad."""
    at = str(int(straight[BAD]["first_index"]))

    def make(policy):
        changes = {"method.poison": "data", "method.at": at, "train.first.nonfinite": policy}
        return tiny(changes)

    return make


@pytest.fixture
def interrupted(monkeypatch):
    """Has a run asked to stop while the row of a step is written."""

    def install(step):
        write = Metrics.write

        def patched(self, stage, at, values):
            write(self, stage, at, values)
            if at == step:
                monkeypatch.setattr(Metrics, "write", write)
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Metrics, "write", patched)

    return install


SAID = (
    f"the loss of stage 'first' is nan at step {BAD}; the first that is not finite is the loss "
    "itself: what every layer returns is finite"
)


def test_raise_says_where_and_the_run_goes_on_with_skip(poisoned, tmp_path, capfd):
    with pytest.raises(UserError) as caught:
        commands.train(poisoned("raise"), str(tmp_path), "first")
    assert str(caught.value).startswith(SAID + "; what is saved is intact")
    assert "nonfinite=skip or rollback" in str(caught.value)
    assert list(rows(tmp_path)) == list(range(1, BAD))
    commands.train(poisoned("skip"), str(tmp_path), "first")
    assert list(rows(tmp_path)) == list(range(1, 13))
    assert f"first: 1 step skipped: {BAD}" in capfd.readouterr().err


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_it_ends_as_if_nothing_had_interrupted_it(
    poisoned, straight, saved, interrupted, tmp_path, capfd, policy
):
    commands.train(poisoned(policy), str(tmp_path / "whole"), "first")
    told = capfd.readouterr().err
    found = rows(tmp_path / "whole")
    assert list(found) == list(range(1, 13))
    if policy == "skip":
        assert f"{SAID}; skipped\n" in told and f"first: 1 step skipped: {BAD}\n" in told
        assert found[BAD]["loss"] is None
        counts = {step: row.get("skipped_steps") for step, row in found.items()}
        assert counts == {step: None if step < BAD else 1.0 for step in range(1, 13)}
        passed = 0
    else:
        assert f"{SAID}; back to step 4, and on with the data after that of step {BAD}\n" in told
        assert {step for step, row in found.items() if row.get("rollbacks")} == set(range(5, 13))
        passed = BAD - 4
    for step in range(5, 13 - passed):
        assert found[step]["first_index"] == straight[step + passed]["first_index"]
    interrupted(9)
    with pytest.raises(Interrupted):
        commands.train(poisoned(policy), str(tmp_path / "cut"), "first")
    commands.train(poisoned(policy), str(tmp_path / "cut"), "first")
    whole, cut = (saved(tmp_path / name, "first") for name in ("whole", "cut"))
    assert {path: leaf.tobytes() for path, leaf in whole.items()} == {
        path: leaf.tobytes() for path, leaf in cut.items()
    }
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]


def test_going_back_before_anything_was_saved(tiny, straight, tmp_path, capfd):
    at = str(int(straight[2]["first_index"]))
    changes = {"method.poison": "data", "method.at": at, "train.first.nonfinite": "rollback"}
    commands.train(tiny(changes), str(tmp_path), "first")
    found = rows(tmp_path)
    assert list(found) == list(range(1, 13)) and "back to step 0, " in capfd.readouterr().err
    assert found[1]["first_index"] == straight[3]["first_index"]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("skip", "3 steps in a row were skipped; the loss of stage 'first' is nan at step 6; "),
        ("rollback", "the loss itself: what every layer returns is finite, after going back 3 "),
    ],
)
def test_it_gives_up(tiny, tmp_path, monkeypatch, policy, said):
    monkeypatch.setattr(guard, "LIMIT", 3)
    # The count that the loss looks at is of the state: it comes again and again.
    changes = {"method.poison": "loss", "method.at": "3", "train.first.nonfinite": policy}
    with pytest.raises(UserError) as caught:
        commands.train(tiny(changes), str(tmp_path), "first")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (
            "1 steps",
            r"^step \d of stage 'first' left what is not finite: variables/params/.*kernel",
        ),
        (
            "12 steps",
            r"at step \d; the first that is not finite is variables/params/.* of the state",
        ),
    ],
)
def test_what_an_optimizer_makes_is_looked_at_before_it_is_saved(tiny, tmp_path, save, said):
    changes = {"train.first.optimizer.weight_decay": "1e30", "train.first.save": save}
    config = tiny(changes)
    with pytest.raises(UserError, match=said):
        commands.train(config, str(tmp_path), "first")
    kept = Run(config, str(tmp_path)).step_of("first")
    assert kept < 8 and (kept > 0) == (save == "1 steps")


def test_another_policy_is_refused(tiny, tmp_path):
    config = tiny({"train.first.nonfinite": "rolback"})
    with pytest.raises(
        UserError, match=r"nonfinite='rolback' is not known .did you mean 'rollback'"
    ):
        Run(config, str(tmp_path))


def test_a_course_comes_back_from_the_meta():
    course = Course().skip(3).skip(5).skip(6)
    assert course.in_a_row() == 2 and course.sentence() == "3 steps skipped: 3, 5, 6"
    assert Course().in_a_row() == 0 and Course().sentence() == "" and Course().meta() == {}
    back = course.back(20, 12).back(30, 25)
    assert (back.offset, back.rollbacks) == (13, 2)
    meta = {"step": 3, "seconds": 1.0, **back.meta()}
    assert Course.of(json.loads(json.dumps(meta))) == back
    many = Course(skipped=tuple(range(1, 60, 2)))
    assert many.sentence().endswith("37, 39, ...") and many.in_a_row() == 1
