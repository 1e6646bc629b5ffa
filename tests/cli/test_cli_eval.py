"""`bigr eval` with comparable metrics and probes: what is printed, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigr_jax.cli.main import main
from bigr_jax.errors import UserError
from bigr_jax.metrics.comparable import Features
from bigr_jax.train import comparable

TINY = str(Path(__file__).resolve().parents[1] / "tiny.py")
Capture = pytest.CaptureFixture[str]


class Stand:
    """A linear map in the place of Inception-v3."""

    def __init__(self, path: str, mesh: Any, size: int) -> None:
        if not Path(path).exists():
            raise UserError(f"weights file {path!r} does not exist")
        self.name, self.size = "stand-in", size

    def __call__(self, images: np.ndarray) -> Features:
        pixels = images.reshape(len(images), -1) / np.linspace(100, 300, 48)
        return Features(pixels[:, ::3], pixels[:, 1::3], pixels[:, 2::3])


@pytest.fixture(autouse=True)
def stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparable, "InceptionReader", Stand)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("eval")
    assert main(["train", f"--config={TINY}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def files(finished: Path, tmp_path: Path) -> dict[str, str]:
    """Paths of a trained run, weights, and two files of images."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 256, (20, 4, 4, 3), np.uint8))
    (tmp_path / "w.npz").touch()
    shutil.copytree(finished, tmp_path / "run")
    return {name: str(tmp_path / name) for name in ("run", "a.npz", "b.npz", "w.npz", "out.npz")}


def printed(capsys: Capture, *argv: str) -> tuple[dict[str, str], str]:
    capsys.readouterr()
    assert main(argv) == 0
    out, error = capsys.readouterr()
    return dict(line.split(maxsplit=1) for line in out.splitlines()), error


def test_a_run_by_comparable_metrics(files: dict[str, str], capsys: Capture) -> None:
    workdir, given = files["run"], f"--inception={files['w.npz']}"
    words = [
        f"--workdir={workdir}",
        given,
        "--samples=30",
        "--batch=8",
        f"--out={files['out.npz']}",
    ]
    rows, error = printed(capsys, "eval", *words, "--seed=4", "--config.sample.noise=0.3")
    kept = json.loads(Path(workdir, "results.json").read_text())["comparable"]
    assert float(rows["fid"]) == pytest.approx(kept["fid"], rel=1e-5)
    assert rows["seed"] == "4" and rows["sample.noise"] == "0.3" and rows["samples"] == "30"
    assert rows["protocol"].startswith("guided-diffusion (ADM): Inception-v3 of 2015")
    assert {"sfid", "inception_score", "precision", "recall", "kid"} <= rows.keys()
    said = error.splitlines()
    assert said[0] == "reading the 1438 images of the training split"
    assert said[1] == "drawing 30 images"
    assert said[2] == "compiling the sampler, this may take a while ..."
    assert said[3].startswith("compiled in ")
    assert said[4] == "FID of 30 images is larger than of 50000: compare it with that of as many"
    with np.load(files["out.npz"]) as drawn:
        assert drawn["arr_0"].shape == (30, 4, 4, 3)
    # Measured again by its own metrics, those numbers stay.
    rows, _ = printed(capsys, "eval", f"--workdir={workdir}", "--stage=second")
    assert float(rows["comparable.fid"]) == pytest.approx(kept["fid"], rel=1e-5)


def test_images_against_images(files: dict[str, str], capsys: Capture) -> None:
    words = [f"--images={files['a.npz']}", f"--inception={files['w.npz']}"]
    rows, error = printed(capsys, "eval", *words, f"--reference={files['b.npz']}")
    assert float(rows["fid"]) > 0 and rows["samples"] == "20" and rows["inception"] == "stand-in"
    assert error.splitlines()[0] == f"reading {files['a.npz']}"


def test_probes(smoke: Path, tmp_path: Path, capsys: Capture) -> None:
    workdir = shutil.copytree(smoke, tmp_path / "run")
    words = ["--probe_batch=100", "--probe_epochs=2", "--probe_warmup=1", "--probe_rate=30"]
    rows, error = printed(capsys, "eval", f"--workdir={workdir}", "--probe", *words)
    assert rows["stage"] == "generator" and 0 < float(rows["layer0.top1"]) <= 1
    kept = json.loads((workdir / "results.json").read_text())["probe_mae"]
    assert kept["protocol"]["rate"] == 30 and kept["protocol"]["warmup"] == 1
    assert "training the probes for 2 epochs, 100 examples a step" in error


INCEPTION = "--inception=w.npz"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([INCEPTION], "--workdir is missing, the folder of a run, e.g. "),
        (["--images=a.npz"], "--images goes with --inception, which is missing"),
        (["--workdir=run", "--reference=b.npz"], "--reference goes with --inception, which is"),
        (["--workdir=run", "--samples=5"], "--samples goes with --inception, which is missing"),
        (["--workdir=run", "--probe_rate=5"], "--probe_rate goes with --probe, which is missing"),
        (["--workdir=run", "--config.sample.noise=1"], "--config.KEY goes with --inception, which"),
        (["--workdir=run", INCEPTION, "--probe"], "--probe and --inception: one at a time"),
        (["--workdir=run", INCEPTION, "--stage=second"], "--stage and --inception: one at a time"),
        (["--images=a.npz", INCEPTION, "--workdir=run"], "--images and --workdir: one at a time"),
        (["--images=a.npz", INCEPTION, "--samples=3"], "--images and --samples: one at a time"),
        (["--images=a.npz", INCEPTION, "--config.a=1"], "--images and --config.KEY: one at a time"),
        (
            ["--images=a.npz", INCEPTION],
            "--images is compared with --reference=REF.npz, which is m",
        ),
        (["--images=c.npz", INCEPTION, "--reference=b.npz"], "file 'c.npz' does not exist"),
        (["--workdir=run", "--inception=v.npz"], "weights file 'v.npz' does not exist"),
        (["--workdir=run", INCEPTION, "--reference=w.npz"], "w.npz cannot be read as npz"),
        (["--workdir=run", INCEPTION, "--samples=1"], "--samples=1: legal: integer >= 2"),
        (["--workdir=run", INCEPTION, "--samples=30", "--out=a.npz"], "--out=a.npz is there and"),
        (["--workdir=run", "--probe"], f"{TINY}: no stage has features to probe, a network"),
    ],
)
def test_mistakes_are_one_line(
    files: dict[str, str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(Path(files["run"]).parent)
    capsys.readouterr()
    assert main(["eval", *argv]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"bigr: {message}") and error.count("\n") == 1, error
