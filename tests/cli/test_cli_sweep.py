"""`bigr sweep` on whole runs: what is trained, how it is measured, what is refused beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bigr_jax.cli.main import main
from bigr_jax.lab import lab as module

TINY = str(Path(__file__).resolve().parents[1] / "tiny.py")
WORDS = ["train.second.ema=0.0,0.9", "sample.noise=0.1,0.7", "seed=0,1"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Returns the list of (directory's name, stage) of all trainings from here on."""
    found: list[tuple[str, str]] = []
    train = module.Run.train

    def counted(run: module.Run, name: str, report: bool) -> None:
        found.append((Path(run.workdir).name, name))
        train(run, name, report)

    monkeypatch.setattr(module.Run, "train", counted)
    return found


def test_every_combination_is_measured_under_its_own_settings(
    tmp_path: Path, capsys: Capture, trained: list[tuple[str, str]]
) -> None:
    command = ["sweep", f"--config={TINY}", "--stage=second", f"--workdir={tmp_path}", *WORDS]
    assert main(command) == 0
    out = capsys.readouterr().out
    # The stage before is trained once, and once for both values of what training does not see.
    assert sorted(trained) == [
        ("base-seed0", "first"),
        ("base-seed0", "second"),
        ("base-seed1", "second"),
        ("train.second.ema=0.0-seed0", "second"),
        ("train.second.ema=0.0-seed1", "second"),
    ]
    lines = out.splitlines()
    assert lines[0].split() == [
        "train.second.ema", "sample.noise", "loss", "↓", "brightness", "↑", "spread", "↑",
    ]  # fmt: skip
    rows = [line.split() for line in lines[2:6]]
    assert [row[:2] for row in rows] == [[e, n] for e in ("0.0", "0.9") for n in ("0.1", "0.7")]
    assert [row[-3:] if row[-1] != "*" else row[-4:-1] for row in rows] == [
        [noise, "±", "0"] for noise in ("0.1", "0.7", "0.1", "0.7")
    ]
    # Rows of one training have one loss, the best of which is marked.
    assert rows[0][2:6] == rows[1][2:6] and rows[2][2:5] == rows[3][2:5]
    assert [row[2] == rows[0][2] for row in rows] == [True, True, False, False]
    assert lines[-3].startswith("* the best; seeds 0, 1; ")
    assert lines[-2:] == [f"{tmp_path}/sweep.json", f"{tmp_path}/sweep.png"]
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert (found["stage"], found["seeds"], len(found["records"])) == ("second", [0, 1], 24)
    assert found["arms"]["train.second.ema=0.0, sample.noise=0.7"] == {
        "train.second.ema": "0.0", "sample.noise": "0.7",
    }  # fmt: skip
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.format == "PNG"
    del trained[:]
    assert main(command) == 0
    again = capsys.readouterr()
    assert (again.out, trained) == (out, [])
    assert again.err.count("measured before\n") == again.err.count("\n") == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to compare"),
        (["method.noise=0.1,x"], "config.method.noise: 'x' given, float expected"),
        (["method.nois=0.1"], "config.method.nois is not a key (did you mean 'noise'?)"),
        (["--stage=thrd", "seed=0"], "arm 'unchanged', seed 0: --stage=thrd is no stage"),
        (
            ["train.second.batch_size=8,0"],
            "arm 'train.second.batch_size=0', seed 0: train.second.batch_size=0 must be 1 or more",
        ),
        (
            ["--stage=second", "train.first.ema=0.5"],
            "arm 'train.first.ema=0.5', seed 0: config.train.first.ema is none of stage 'second'",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    tmp_path: Path,
    capsys: Capture,
    trained: list[tuple[str, str]],
    words: list[str],
    message: str,
) -> None:
    assert main(["sweep", f"--config={TINY}", f"--workdir={tmp_path}", *words]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n"), trained) == ("", 1, [])
    assert error.startswith(f"bigr: {message}")
