"""`bigr report`: the tables, what they are made from, and that the committed ones are current."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_jax import pictures
from bigr_jax.cli.main import main
from bigr_jax.cli.report import written
from bigr_jax.lab import tables

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


def test_a_readme_beside_them_gets_the_short_table(
    folders: tuple[Path, Path], capsys: Capture
) -> None:
    results, experiments = folders
    readme = results.parent / "README.md"
    words = [f"--results={results}", f"--experiments={experiments}"]
    # One without a place for it is left alone.
    readme.write_text("Mine.\n")
    assert main(["report", *words]) == 0
    assert str(readme) not in capsys.readouterr().out.splitlines()
    assert readme.read_text() == "Mine.\n"
    readme.write_text(f"Mine.\n{tables.BEGIN}\nold\n{tables.END}\nAnd this.\n")
    assert main(["report", *words]) == 0
    assert str(readme) in capsys.readouterr().out.splitlines()
    before, *table, after = readme.read_text().splitlines()
    assert (before, after) == ("Mine.", "And this.")
    what = "what it is (2024, [2410.14672](https://arxiv.org/abs/2410.14672))"
    assert table[3:-1] == [
        f"| [One](experiments/one.py) | {what} | not proved yet |  |  |",
        f"| [Two](experiments/two.py) | {what} | yes: a beats b, score 0.9 against 0.8 | "
        "[1 of 2](results/README.md#two) | 4 min |",
    ]


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
    said = f"bigr: --results={tmp_path}/none is no folder; legal: what `bigr prove` filled\n"
    assert capsys.readouterr().err == said
    words = [f"--results={tmp_path}", f"--experiments={tmp_path}/none"]
    assert main(["report", *words]) == 2
    said = f"bigr: --experiments={tmp_path}/none is no folder; legal: the folder of a checkout"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.skipif(not any(ROOT.glob("results/*.json")), reason="nothing is proved here yet")
def test_the_committed_tables_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path, text in written("results", "experiments").items():
        assert Path(path).read_text("utf-8") == text, f"{path}: run `bigr report`"


@pytest.fixture
def page(folders: tuple[Path, Path], capsys: Capture) -> Path:
    """The page of what was proved, with one picture there and one missing."""
    results, experiments = folders
    pictures.save_png(results / "two.png", np.full((40, 60, 3), (200, 30, 40), np.uint8))
    assert main(["report", f"--results={results}", f"--experiments={experiments}", "--html"]) == 0
    assert str(results / "report.html") in capsys.readouterr().out
    return results / "report.html"


def test_the_page_says_every_claim_and_needs_nothing_beside_itself(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "1 method, 1 of 2 claims hold" in text
    assert text.count('<li><span class="mark') == 2 and "a beats c" in text
    assert "not finite against 0.8" in text and "Better | faster than before." in text
    sources = re.findall(r'(?:src|href)="([^"]{1,20})', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert text.count("<img") == 1
    # A claim's bar ends where its interval does: 0.1 - 2.92 * 0.01 of at most 0.1 + 2.92 * 0.01.
    (low,) = re.findall(r'<line class="yes" x1="([\d.]+)"', text)
    assert float(low) == pytest.approx(12 + 216 * (0.1 - 0.0292) / 0.1292, abs=0.1)


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium here")
def test_a_browser_draws_the_page(page: Path, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"]
    shot = tmp_path / "page.png"
    command = [shutil.which("chromium"), *flags, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (1400, 1000, 3)

    def near(colour: tuple[int, int, int]) -> int:
        return int((np.abs(pixels - colour).max(-1) < 12).sum())

    # The picture, the mark of the claim that holds with its bar, and that of the other.
    assert near((200, 30, 40)) > 2000
    assert near((0, 112, 79)) > 100 and near((176, 58, 46)) > 10
