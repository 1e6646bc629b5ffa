"""`bigr encode`, and training a generator on what it stored."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.cli.main import main
from bigr_jax.data import open_source
from bigr_jax.train.run import Run

pytest.importorskip("array_record", reason="array_record is not installed")

Capture = pytest.CaptureFixture[str]
# As little as can be compiled: what is trained here is not looked at.
SETTINGS = {
    "tokenizer_loss.adversarial": "false",
    "model.depth": "1",
    "diffusion.steps": "2",
    "sample.iterations": "1",
    "sample.denoise_steps": "1",
    "report.per_class": "1",
    "report.probe": "false",
    "train.generator.duration": "3 steps",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of bigr:smoke whose tokenizer and referee were given to it."""
    run = Run(configs.load("bigr:smoke", SETTINGS), str(tmp_path_factory.mktemp("run")))
    run.write_description()
    random = np.random.default_rng(0)
    for name in ("tokenizer", "referee"):
        shapes = run.plan(name).abstract.variables
        drawn = jax.tree.map(
            lambda leaf: random.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes
        )
        run.adopt(name, drawn)
    return run.workdir


@pytest.fixture(scope="module")
def encoded(workdir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("codes"))
    assert main(["encode", f"--workdir={workdir}", f"--out={folder}", "--flip", "--seed=4"]) == 0
    return folder


def test_the_folder_is_printed_and_filled(encoded: str, workdir: str, capsys: Capture) -> None:
    argv = ["encode", f"--workdir={workdir}", f"--out={encoded}", "--flip", "--seed=4"]
    assert main(argv) == 0
    out, said = capsys.readouterr()
    assert out == f"{encoded}\n"
    train, test = said.splitlines()[-2:]
    assert train.startswith("train: 1438 images, 0 encoded in ")
    assert test.startswith("test: 359 images, 0 encoded in ")
    described = json.loads(Path(encoded, "codes.json").read_text())
    assert {name: described[name] for name in ("draws", "flip", "seed", "tokens", "bits")} == {
        "draws": 1,
        "flip": True,
        "seed": 4,
        "tokens": 16,
        "bits": 8,
    }
    source = open_source({"source": f"codes:{encoded}", "size": 8, "channels": 1}, "train")
    assert (len(source), source.info.num_classes) == (1438, 10)


def test_a_generator_is_trained_on_the_codes(
    encoded: str, workdir: str, tmp_path: Path, capsys: Capture
) -> None:
    flags = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    where = [f"--base={workdir}", f"--workdir={tmp_path}", "--stage=generator"]
    source = f"--config.data.source=codes:{encoded}"
    assert main(["train", "--config=bigr:smoke", source, *where, *flags]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["stages"]["generator"]
    assert found["step"] == 3
    assert 0 < found["test"]["loss"] < 5
    assert (tmp_path / "samples.png").exists()
    examples = json.loads((tmp_path / "config.json").read_text())["data"]["examples"]
    assert examples == 1438


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=HERE", "--split=all"], "--split='all' is not known; legal: train, test"),
        (["--workdir=HERE", "--split="], "--split='' is not known; legal: train, test"),
        (["--workdir=HERE", "--draws=-1"], "--draws=-1: legal: non-negative integer"),
        (["--workdir=HERE", "--config.model.depth=2"], "--config='model.depth' is not known; leg"),
        (["--workdir=HERE", "--config.data.sourc=x"], "config.data.sourc is not a key (did you m"),
        (["--workdir=HERE", "--config=bigr"], "bigr encode takes no --config"),
        (["--workdir=HERE", "--out=CODES", "--draws=3"], "CODES/codes.json is of other settings: "),
        (["--workdir=CODES"], "--workdir=CODES is no work directory of `bigr train`"),
    ],
)
def test_mistakes_are_one_line(
    encoded: str, workdir: str, capsys: Capture, flags: list[str], message: str
) -> None:
    capsys.readouterr()
    words = [word.replace("HERE", workdir).replace("CODES", encoded) for word in flags]
    assert main(["encode", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"bigr: {message.replace('CODES', encoded)}")
