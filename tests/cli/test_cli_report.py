"""`bigr report`: the tables, what they are made from, and that the committed ones are current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigr_jax.cli.main import main
from bigr_jax.cli.report import written

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]

CARD = '''"""{title}: what it is (2024, arXiv 2410.14672).

Claim     Better | faster
          than before.
Evidence  A study.
Command   bigr prove --config={slug}:small
"""
'''


def claim(text: str, holds: bool, **changes: Any) -> dict[str, Any]:
    found = {
        "text": text, "holds": holds, "metric": "score", "better": "a", "than": "b", "lower": False,
        "margin": 0.0, "value": 0.9, "against": 0.8, "difference": 0.1, "spread": 0.01, "seeds": 3,
    }  # fmt: skip
    return {**found, **changes}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of two experiments, one of which is proved."""
    results, experiments = tmp_path / "results", tmp_path / "experiments"
    results.mkdir()
    experiments.mkdir()
    for slug, title in (("one", "One"), ("two", "Two"), ("__init__", "None")):
        (experiments / f"{slug}.py").write_text(CARD.format(title=title, slug=slug))
    values = {"a": (0.8, 1.0, None), "b": (0.75, 0.8, 0.85), "none": (0.5,)}
    records = [
        {"arm": arm, "metric": "score", "seed": seed, "value": value}
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]
    content = {
        "slug": "two", "variant": "small", "seeds": [0, 1, 2], "seconds": 250.0,
        "claims": [claim("a beats b", True), claim("a beats c", False, value=None)],
        "environment": {"bigr_jax": "0.1.0", "jax": "0.10.2"}, "figures": ["samples"],
        "records": records,
    }  # fmt: skip
    (results / "two.json").write_text(json.dumps(content))
    return results, experiments


def test_both_tables_say_what_was_proved_and_what_was_not(
    folders: tuple[Path, Path], capsys: Capture
) -> None:
    results, experiments = folders
    words = [f"--results={results}", f"--experiments={experiments}"]
    assert main(["report", *words]) == 0
    paths = [results / "README.md", experiments / "README.md"]
    assert capsys.readouterr().out == "".join(f"{path}\n" for path in paths)
    sections, table = (path.read_text() for path in paths)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert rows == [
        "| method | the paper's claim | our figure | holds | command | time |",
        "| --- | --- | --- | --- | --- | --- |",
        "| [One](one.py) | Better \\| faster than before. | not proved yet |  "
        "| `bigr prove --config=one:small` |  |",
        "| [Two](two.py) | Better \\| faster than before. | [score 0.9 against 0.8]"
        "(../results/README.md#two) | 1 of 2 | `bigr prove --config=two:small` | 4 min |",
    ]
    assert "## two" in sections and "## one" not in sections
    for text in (
        "- **holds**: a beats b  \n  score 0.9 against 0.8, difference 0.1 ± 0.01 over 3 seeds",
        "- **does not hold**: a beats c  \n  score not finite against 0.8",
        "Two: what it is (2024, arXiv 2410.14672).",
        "The paper's claim: Better | faster than before.",
        "| arm | score |\n| --- | --- |\n| a | not finite |\n| b | 0.8 ± 0.05 |\n| none | 0.5 |\n",
        "![two](two.png)\n![two-samples](two-samples.png)",
        "`bigr prove --config=two:small`, 4 min, seeds 0, 1, 2  \nbigr_jax 0.1.0, jax 0.10.2",
    ):
        assert text in sections
    # Written again, they are the same; what stands around the table stays.
    place = experiments / "README.md"
    place.write_text(f"Mine.\n{table}And this.\n")
    assert main(["report", *words]) == 0
    assert place.read_text() == f"Mine.\n{table}And this.\n"
    assert (results / "README.md").read_text() == sections


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results/bad.json", "{", "HERE/results/bad.json is not JSON: "),
        ("results/bad.json", "{}", "HERE/results/bad.json is not what `bigr prove` writes"),
        ("experiments/README.md", "Mine.", "HERE/experiments/README.md has no place for the table"),
    ],
)
def test_mistakes_are_one_line(
    folders: tuple[Path, Path], capsys: Capture, name: str, text: str, message: str
) -> None:
    here = folders[0].parent
    (here / name).write_text(text)
    words = [f"--results={here}/results", f"--experiments={here}/experiments"]
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bigr: {message.replace('HERE', str(here))}")
    assert error.count("\n") == 1
    assert not (here / "results" / "README.md").exists()


def test_folders_that_are_not_there(tmp_path: Path, capsys: Capture) -> None:
    assert main(["report", f"--results={tmp_path}/none"]) == 2
    assert capsys.readouterr().err == f"bigr: --results={tmp_path}/none is no folder\n"
    words = [f"--results={tmp_path}", f"--experiments={tmp_path}/none"]
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err == f"bigr: --experiments={tmp_path}/none is no folder\n"


@pytest.mark.skipif(not any(ROOT.glob("results/*.json")), reason="nothing is proved here yet")
def test_the_committed_tables_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path, text in written("results", "experiments").items():
        assert Path(path).read_text("utf-8") == text, f"{path}: run `bigr report`"
