"""`bigr train`, `eval` and `sample` on whole runs, and what they say of mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_jax import pictures
from bigr_jax.cli.main import main

TINY = str(Path(__file__).resolve().parents[1] / "tiny.py")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run of bigr:smoke, to be read and drawn from."""
    return str(shutil.copytree(smoke, tmp_path_factory.mktemp("cli") / "run"))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of tests/tiny.py of which only the first stage is trained."""
    workdir = tmp_path_factory.mktemp("unfinished")
    assert main(["train", f"--config={TINY}", f"--workdir={workdir}", "--stage=first"]) == 0
    return str(workdir)


def results(workdir: str) -> dict[str, Any]:
    return json.loads(Path(workdir, "results.json").read_text())["stages"]


def said(capsys: Capture, *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 0
    return capsys.readouterr().out


def refusal(capsys: Capture, *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    return error


def picture(path: str) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_train_leaves_pictures_and_numbers(run: str, capsys: Capture) -> None:
    out = said(capsys, "train", "--config=bigr:smoke", f"--workdir={run}")
    assert out == (
        f"done: look into {run} (reconstructions.png, samples.png, results.json, metrics.jsonl)\n"
    )
    found = results(run)
    assert list(found) == ["tokenizer", "referee", "generator"]
    assert found["tokenizer"]["report"]["bits_per_image"] == 128
    assert 0 <= found["generator"]["report"]["agreement"] <= 1
    names = [str(digit) for digit in range(10)]
    sheet = pictures.grid(np.zeros((20, 8, 8, 1)), 2, names=names)
    assert picture(f"{run}/samples.png").shape == sheet.shape


def test_eval_prints_what_training_measured(run: str, capsys: Capture) -> None:
    before = results(run)
    lines = said(capsys, "eval", f"--workdir={run}", "--stage=tokenizer").splitlines()
    assert results(run) == before
    printed = dict(line.split() for line in lines)
    assert printed["slug"] == "bigr"
    for stage, entry in before.items():
        for name, value in entry["test"].items():
            assert float(printed[f"stages.{stage}.test.{name}"]) == pytest.approx(value, rel=1e-5)


def test_sample_draws_the_classes_asked_for(run: str, capsys: Capture, tmp_path: Path) -> None:
    def drawn(name: str, *flags: str) -> np.ndarray:
        path = str(tmp_path / f"{name}.png")
        words = ["--classes=3,5", "--per_class=2", f"--out={path}", *flags]
        assert said(capsys, "sample", f"--workdir={run}", *words) == f"{path}\n"
        return picture(path)

    first = drawn("a")
    assert first.shape == pictures.grid(np.zeros((4, 8, 8, 1)), 2, names=["3", "5"]).shape
    assert np.array_equal(first, drawn("b", "--seed=0"))
    assert not np.array_equal(first, drawn("c", "--seed=1"))
    # So short a training leaves guidance next to nothing to scale; heat shows.
    changes = ["--config.sample.cfg_scale=1.0", "--config.sample.temperature=3.0"]
    assert not np.array_equal(first, drawn("d", *changes))


def test_sample_draws_all_classes_into_the_work_directory(run: str, capsys: Capture) -> None:
    out = said(capsys, "sample", f"--workdir={run}", "--per_class=2", "--seed=7")
    assert out == f"{run}/samples-seed7.png\n"
    assert picture(f"{run}/samples-seed7.png").shape == picture(f"{run}/samples.png").shape


def test_sample_draws_at_another_size(run: str, capsys: Capture, tmp_path: Path) -> None:
    words = ["--classes=3", "--per_class=2", "--size=12", f"--out={tmp_path}/a.png"]
    said(capsys, "sample", f"--workdir={run}", *words)
    expected = pictures.grid(np.zeros((2, 12, 12, 1)), 2, names=["3"])
    assert picture(f"{tmp_path}/a.png").shape == expected.shape


def test_a_folder_of_ones_own_images(capsys: Capture, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ants", "bees", "cats")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 80, (9, 11, 3), np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    workdir = str(tmp_path / "run")
    changes = {
        "data.source": f"folder:{tmp_path}/images",
        "tokenizer_loss.adversarial": "false",
        "referee.enabled": "false",
        "train.tokenizer.duration": "3 steps",
        "train.generator.duration": "2 steps",
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    said(capsys, "train", "--config=bigr:smoke", f"--workdir={workdir}", *flags)
    config = json.loads(Path(workdir, "config.json").read_text())
    data = {name: config["data"][name] for name in ("channels", "num_classes")}
    assert data == {"channels": 3, "num_classes": 3}
    assert list(results(workdir)) == ["tokenizer", "generator"]
    sheet = picture(f"{workdir}/samples.png")
    names = ["ants", "bees", "cats"]
    expected = pictures.grid(np.full((6, 8, 8, 3), 0.5), 2, names=names)
    assert sheet.shape == expected.shape
    # The names are written at the left, the pictures are in colour.
    margin = expected.shape[1] - 2 * 66 - 2
    assert np.array_equal(sheet[:, :margin], expected[:, :margin])
    assert np.ptp(sheet[:, margin:].astype(int), axis=-1).max() > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--config=TINY", "--stage=secnd"], "--stage=secnd is no stage (did you mean 's"),
        (["train", "--config=TINY", "--profile=3"], "--profile=3 is not FIRST:LAST"),
        (["train", "--config=TINY", "--config.seed=1"], "HERE was made with another config: seed"),
        (["train", "--config=bigr:smoke"], "HERE was made with another config: "),
        (["train", "--config=TINY", "--config.data.source=folder:/none"], "data.source: /none is "),
        (["train", "--config=TINY", "--config.data.num_classes=7"], "config.data.num_classes=7, b"),
        (["train", "--config=TINY", "--config.mesh.model=3"], "mesh data=-1, fsdp=1, model=3, seq"),
        (["train", "--config=TINY", "--config.train.first.accumulate=3"], "train.first.batch_size"),
        (["train", "--config=TINY", "--config.train.first.duration=9"], "train.first.duration='9'"),
        (["train", "--config=TINY", "--config.train.first.ema=x"], "config.train.first.ema: 'x' g"),
        (["eval", "--stage=second"], "stage 'second' is at step 0 of 6 in HERE; train it first: "),
        (["eval", "--stage=third"], "--stage=third is no stage"),
        (["sample"], "stage 'second' is at step 0 of 6 in HERE; train it first: bigr train "),
        (["sample", "--classes=10"], "--classes=10: classes are 0 to 9"),
        (["sample", "--config.sample.nois=1"], "config.sample.nois is not a key (did you mean 'n"),
        (["sample", "--config.method.noise=1"], "config.method.noise was 0.1, now 1.0: what is"),
    ],
)
def test_mistakes_are_one_line(
    unfinished: str, capsys: Capture, argv: list[str], message: str
) -> None:
    words = [word.replace("TINY", TINY) for word in argv]
    error = refusal(capsys, *words, f"--workdir={unfinished}")
    assert error.startswith(f"bigr: {message.replace('HERE', unfinished)}")


def test_a_run_that_was_never_there(run_python: Any, tmp_path: Path) -> None:
    for name in ("eval", "sample"):
        done = run_python(["-m", "bigr_jax", name, f"--workdir={tmp_path}"])
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"bigr: --workdir={tmp_path} is no work directory of `bigr train`: "
            f"{tmp_path}/config.json is missing; train one: bigr train --config=NAME:VARIANT "
            f"--workdir={tmp_path}\n"
        )


def test_a_sampler_that_is_misspelt(run: str, capsys: Capture) -> None:
    error = refusal(capsys, "sample", f"--workdir={run}", "--config.sample.order=entropi")
    assert "entropi" in error and "entropy" in error
