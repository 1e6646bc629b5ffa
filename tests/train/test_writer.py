from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.train import writer
from bigr_jax.train.writer import Metrics


def write_some(directory, **kwargs):
    with Metrics(directory, **kwargs) as metrics:
        for step in (10, 20, 30):
            metrics.write("tokenizer", step, {"loss": 1 / step})
        metrics.write("generator", 10, {"loss": 5.0})
    return directory / "metrics.jsonl"


def steps(directory, stage):
    return [row["step"] for row in writer.read(directory, stage)]


def test_rows_are_json_lines_with_stage_and_step_first(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.write("a", 1, {"loss": jnp.float32(0.5), "lr": np.float64(1e-3)})
        # On disk before close.
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text == '{"stage": "a", "step": 1, "loss": 0.5, "lr": 0.001}\n'
        metrics.write("b", 1, {"test/acc": 1})
    assert writer.read(tmp_path, "b") == [{"stage": "b", "step": 1, "test/acc": 1.0}]
    assert len(writer.read(tmp_path / "metrics.jsonl")) == 2


def test_what_is_not_finite_is_null_and_comes_back_as_nan(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.write("a", 1, {"x": math.nan, "y": math.inf, "z": 1.0})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"stage": "a", "step": 1, "x": None, "y": None, "z": 1.0}
    (row,) = writer.read(tmp_path)
    assert math.isnan(row["x"]) and math.isnan(row["y"]) and row["z"] == 1.0


def test_rewind_drops_later_rows_of_that_stage_only(tmp_path):
    path = write_some(tmp_path)
    before = path.read_text().splitlines()
    with Metrics(tmp_path) as metrics:
        metrics.rewind("tokenizer", 20)
        assert path.read_text().splitlines() == [before[0], before[1], before[3]]
        metrics.write("tokenizer", 30, {"loss": 9.0})
    assert steps(tmp_path, "tokenizer") == [10, 20, 30] and steps(tmp_path, "generator") == [10]
    assert writer.read(tmp_path, "tokenizer")[-1]["loss"] == 9.0
    with Metrics(tmp_path) as metrics:
        metrics.rewind("tokenizer", -1)
    assert steps(tmp_path, "tokenizer") == []


def test_opening_or_rewinding_to_the_end_leaves_the_file_alone(tmp_path):
    path = write_some(tmp_path)
    before = (path.read_bytes(), path.stat().st_ino)
    with Metrics(tmp_path) as metrics:
        metrics.rewind("tokenizer", 30)
        metrics.rewind("unknown", 0)
    assert (path.read_bytes(), path.stat().st_ino) == before


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_is_continued_without_a_broken_or_double_row(cut, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cut")
    path = write_some(directory)
    whole = path.read_bytes()
    kept = whole[: cut % (len(whole) + 1)]
    path.write_bytes(kept)
    with Metrics(directory) as metrics:
        assert path.read_bytes() == kept[: kept.rfind(b"\n") + 1]
        last = max(steps(directory, "tokenizer"), default=0)
        metrics.rewind("tokenizer", last)
        for step in range(last + 10, 50, 10):
            metrics.write("tokenizer", step, {"loss": 1.0})
    assert steps(directory, "tokenizer") == [10, 20, 30, 40]
    assert path.read_text().endswith("}\n")


def test_read_leaves_out_a_torn_line_and_does_not_mend_the_file(tmp_path):
    path = write_some(tmp_path)
    with path.open("ab") as file:
        file.write('{"stage": "tokenizer", "step": 40, "né'.encode()[:-1])
    before = path.read_bytes()
    assert steps(tmp_path, "tokenizer") == [10, 20, 30]
    assert path.read_bytes() == before


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = write_some(tmp_path)
    path.write_text("hello\n" + path.read_text())
    for action in (lambda: writer.read(path), lambda: Metrics(tmp_path)):
        with pytest.raises(UserError, match=r"metrics.jsonl line 1 is not a row.*hello"):
            action()


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        writer.read(tmp_path)


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.jax, "process_index", lambda: 1)
    with Metrics(tmp_path / "absent", tensorboard=True, wandb=True) as metrics:
        metrics.write("a", 1, {"x": 1.0})
        metrics.rewind("a", 0)
    assert not (tmp_path / "absent").exists()


def test_tensorboard_gets_the_numbers_of_every_stage(tmp_path):
    write_some(tmp_path, tensorboard=True)
    with Metrics(tmp_path, tensorboard=True) as metrics:
        metrics.rewind("tokenizer", 10)
        metrics.write("tokenizer", 20, {"loss": 7.0})
    assert scalars(tmp_path / "tensorboard" / "tokenizer") == [
        (10, "loss", pytest.approx(0.1)),
        (20, "loss", pytest.approx(0.05)),
        (30, "loss", pytest.approx(1 / 30)),
        (20, "loss", 7.0),
    ]
    assert scalars(tmp_path / "tensorboard" / "generator") == [(10, "loss", 5.0)]
    # What TensorBoard shows after 10 is the second run's: the file says from where it purges.
    assert restarts(tmp_path / "tensorboard" / "tokenizer") == [11]


def events(directory):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(directory.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size


def scalars(directory):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(directory)
        for value in event.summary.value
    ]


def restarts(directory):
    return [event.step for event in events(directory) if event.session_log.status == 1]


class FakeWandb:
    """Records what is asked of wandb."""

    def __init__(self):
        self.inits, self.logged, self.finished, self.metrics = [], [], 0, set()

    def init(self, **kwargs):
        self.inits.append(kwargs)
        return SimpleNamespace(
            log=self.logged.append, finish=self.finish, define_metric=self.define
        )

    def define(self, name, step_metric):
        self.metrics.add((name, step_metric))

    def finish(self):
        self.finished += 1


def test_wandb_is_one_run_that_is_resumed(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        write_some(tmp_path, wandb=True)
    assert fake.inits[0] == fake.inits[1] and fake.finished == 2
    assert fake.inits[0]["resume"] == "allow" and len(fake.inits[0]["id"]) == 8
    assert fake.logged[0] == {"tokenizer/step": 10, "tokenizer/loss": 0.1}
    assert fake.metrics == {(f"{s}/*", f"{s}/step") for s in ("tokenizer", "generator")}


@pytest.mark.parametrize("package, flag", [("wandb", "wandb"), ("tensorboardX", "tensorboard")])
def test_a_missing_package_is_named_with_its_pip_line(tmp_path, monkeypatch, package, flag):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"logging.{flag}=True.*pip install {package}"):
        Metrics(tmp_path, **{flag: True})
