"""The table of experiments fits the terminal and never cuts names and commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigr_jax import registry
from bigr_jax.cli.list import table
from bigr_jax.cli.main import main

ROWS = [
    ("name", "title", "claim", "command"),
    ("bigr", "BiGR: masked modelling of binary image codes", "FID 2.71 " * 9, "bigr train --c=1"),
    ("hydra", "Hydra", "better", "bigr train --c=2"),
]


def test_without_a_width_nothing_is_cut() -> None:
    lines = table(ROWS, None).splitlines()
    assert len(lines) == 3
    for row, line in zip(ROWS, lines, strict=True):
        assert all(cell.strip() in line for cell in row)
    assert len({line.index("bigr train") for line in lines[1:]}) == 1


@pytest.mark.parametrize("width", [80, 100, 120])
def test_within_a_width_only_titles_and_claims_are_cut(width: int) -> None:
    lines = table(ROWS, width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[1].startswith("bigr ")
    assert lines[1].endswith("bigr train --c=1")
    assert "…" in lines[1]
    assert "…" not in lines[2]


def test_a_narrow_terminal_still_shows_something_of_each() -> None:
    assert "BiGR" in table(ROWS, 20)


def test_list_has_a_row_for_each_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doc = '"""Tiny: a method.\n\nClaim     more.\nCommand   bigr train --config=tiny:small\n"""\n'
    (tmp_path / "tiny.py").write_text(doc)
    (tmp_path / "bare.py").write_text("")
    monkeypatch.setattr(registry, "_folders", lambda kind: [tmp_path])
    assert main(["list"]) == 0
    head, bare, tiny = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "title", "claim", "command"]
    assert bare == "bare"
    assert tiny.split("  ")[0] == "tiny"
    assert "Tiny: a method.  more." in tiny
    assert tiny.endswith("bigr train --config=tiny:small")
