"""What is going on is said where it takes long, and only there."""

from __future__ import annotations

import io
import sys
import time

import pytest

from bigr_jax import progress

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGR_PROGRESS", "0.02")


def wait_for(capsys: Capture) -> str:
    found, end = "", time.monotonic() + 10
    while not found and time.monotonic() < end:
        time.sleep(0.01)
        found = capsys.readouterr().err
    return found


def test_what_is_slow_is_said_once(capsys: Capture) -> None:
    with progress.slow("compiling"):
        assert wait_for(capsys) == "compiling ...\n"
    assert capsys.readouterr() == ("", "")


def test_what_is_quick_is_not(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGR_PROGRESS", "30")
    with progress.slow("compiling"):
        pass
    assert list(progress.steps(range(3), 3, "reading")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_an_error_ends_the_wait(capsys: Capture) -> None:
    with pytest.raises(KeyError), progress.slow("compiling"):
        raise KeyError
    time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_slow_steps_say_a_line_in_a_log(capsys: Capture) -> None:
    for _ in progress.steps(range(1), 1, "reading"):
        assert wait_for(capsys) == "reading ...\n"


def test_slow_steps_have_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    for _ in progress.steps(range(3), 3, "reading"):
        time.sleep(0.11)
    assert "reading" in screen.getvalue()
    assert "3/3" in screen.getvalue() or "2/3" in screen.getvalue()
