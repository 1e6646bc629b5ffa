"""`bigr demo`: what it is told, and what it says when it cannot start."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bigr_jax.cli import demo
from bigr_jax.cli.command import help_text, parse
from bigr_jax.cli.main import main, usage


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for gradio, the model and the server, and keeps what they were called with."""
    kept: list[tuple[Any, ...]] = []
    server, model = ModuleType("bigr_jax.demo.server"), ModuleType("bigr_jax.model")
    server.serve = lambda *how: kept.append(how)  # type: ignore[attr-defined]
    model.load = lambda workdir: f"model of {workdir}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bigr_jax.demo.server", server)
    monkeypatch.setitem(sys.modules, "bigr_jax.model", model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(demo, "prepare", lambda: None)
    return kept


@pytest.mark.parametrize(
    ("words", "wanted"),
    [([], (7860, False)), (["--port=80", "--open"], (80, True)), (["--noopen"], (7860, False))],
)
def test_serves_the_model_of_the_work_directory(
    served: list[tuple[Any, ...]], words: list[str], wanted: tuple[int, bool]
) -> None:
    assert main(["demo", "--workdir=runs/mine", *words]) == 0
    assert served == [("model of runs/mine", "runs/mine", *wanted)]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--workdir is missing"),
        (["--workdir=w", "--port=0"], "--port=0: legal: "),
        (["--workdir=w", "--port=65536"], "--port=65536: legal: "),
        (["--workdir=w", "--share"], "--share is no flag of bigr demo"),
        (["--workdir=w", "--config.sample.iterations=3"], "bigr demo takes no --config.KEY"),
        (["--workdir=w", "more"], "'more' is one word too many"),
    ],
)
def test_mistakes_are_one_line(
    served: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
) -> None:
    assert main(["demo", *words]) == 2
    out, error = capsys.readouterr()
    assert (out, served) == ("", [])
    assert error.startswith(f"bigr: {text}")
    assert error.count("\n") == 1


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--workdir=w"]) == 2
    assert capsys.readouterr() == (
        "",
        "bigr: the page needs gradio: pip install 'bigr_jax[demo]'\n",
    )


def test_a_folder_that_is_no_work_directory_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(demo, "prepare", lambda: None)
    assert main(["demo", f"--workdir={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_help_tells_that_nothing_leaves_the_machine() -> None:
    text = help_text(demo.COMMAND)
    assert "nothing leaves it" in text
    assert "examples:\n  bigr demo --workdir=runs/quickstart --open" in text
    assert parse(demo.COMMAND, ["--workdir=w"]).flags.port == 7860


def test_the_command_is_among_those_of_bigr() -> None:
    assert "\n  demo " in usage()
