from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from bigr_jax.train import status as module
from bigr_jax.train.status import Status

DEVICE = SimpleNamespace(platform="tpu", device_kind="TPU v4")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def train(stream, total, seconds, waited=0.0, start=0, flops=None):
    clock = Clock()
    status = Status("generator", total, stream, clock)
    status.start(start, 64, flops, DEVICE)
    for step in range(start + 1, total + 1):
        clock.now += seconds
        status.step(step, 2.0 / step, waited)
    status.close()
    return stream.getvalue()


@pytest.mark.parametrize("total, seconds", [(1, 1.0), (7, 30.0), (1000, 0.1), (1000, 5.0)])
def test_a_log_gets_the_first_and_the_last_step_and_few_lines_between(total, seconds):
    lines = train(io.StringIO(), total, seconds).splitlines()
    assert f"1/{total}" in lines[0] and f"{total}/{total} 100%" in lines[-1]
    assert len(lines) <= 20
    expected = min(total, 20, 2 + total * seconds / 10)
    assert len(lines) >= expected / 2


def test_a_log_has_no_control_characters():
    text = train(io.StringIO(), 50, 3.0)
    assert "\r" not in text and "\x1b" not in text


def test_all_that_a_line_says():
    # 0.5 s a step, 0.1 s of it waiting; 64 examples; 13.75e12 FLOPs of 275e12 a second.
    text = train(io.StringIO(), 10_000, 0.5, waited=0.1, flops=13.75e12)
    line = text.splitlines()[1]
    assert line == (
        "generator  528/10000   5%  ETA 1:18 h  loss 0.003788  128 examples/s  MFU 10.0%  "
        "data wait 20.0%"
    )
    assert "ETA" not in text.splitlines()[-1]


def test_no_mfu_where_flops_or_the_peak_are_unknown(monkeypatch):
    assert "MFU" not in train(io.StringIO(), 5, 1.0)
    monkeypatch.setattr(module.flops, "peak_flops", lambda device: None)
    assert "MFU" not in train(io.StringIO(), 5, 1.0, flops=1e12)


def test_a_resumed_stage_counts_its_own_steps_for_the_speed():
    text = train(io.StringIO(), 1000, 1.0, start=990)
    assert text.splitlines()[0].startswith("generator  991/1000  99%  ETA 9 s")
    assert "64 examples/s" in text


def test_a_terminal_shows_one_line_rewritten_in_place():
    text = train(Terminal(), 300, 0.05)
    assert text.count("\n") == 1 and text.endswith("\n")
    shown = text.split("\r\x1b[K")
    assert 100 <= len(shown) <= 151
    assert "300/300 100%" in shown[-1]


def test_a_narrow_terminal_is_not_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = train(Terminal(), 3, 1.0)
    assert all(len(part) <= 29 for part in text.replace("\n", "").split("\r\x1b[K"))


def test_a_message_stays_above_the_line():
    stream, clock = Terminal(), Clock()
    status = Status("a", 10, stream, clock)
    status.start(0, 8, None, DEVICE)
    clock.now += 1
    status.step(1, 0.5, 0.0)
    status.message("a step 1: test accuracy 0.9")
    erased = stream.getvalue().split("\r\x1b[K")
    assert erased[-1].startswith("a step 1: test accuracy 0.9\na  1/10")


def test_an_evaluation_between_steps_does_not_count_as_training_time():
    stream, clock = io.StringIO(), Clock()
    status = Status("a", 3, stream, clock)
    status.start(0, 8, None, DEVICE)
    for step in range(1, 4):
        clock.now += 1
        status.step(step, 0.5, 0.0)
        clock.now += 500
        status.message("evaluated")
    assert "8 examples/s" in stream.getvalue().splitlines()[-2]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_compiling_is_announced_and_its_time_told(stream):
    status = Status("a", 10, stream)
    status.compiling("the train step")
    assert "a: compiling the train step (first step)" in stream.getvalue()
    status.compiled(12.34)
    assert stream.getvalue().endswith("a: compiled in 12.3 s\n")


def test_other_processes_are_silent(monkeypatch):
    monkeypatch.setattr(module.jax, "process_index", lambda: 1)
    stream = Terminal()
    status = Status("a", 1, stream)
    status.compiling("x")
    status.compiled(1.0)
    status.start(0, 1, None, DEVICE)
    status.step(1, 0.0, 0.0)
    status.message("hello")
    status.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (61, "1:01 min"), (7384, "2:03 h")]
)
def test_durations(seconds, text):
    assert module._duration(seconds) == text
