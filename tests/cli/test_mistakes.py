"""The mistakes that are made most: each is one message that names what is wrong and says the mend.

mistakes.txt holds every command with all that it writes to stderr. Where another text is meant,
BIGR_REGENERATE=1 python -m pytest tests/cli/test_mistakes.py writes it anew.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from bigr_jax.cli.main import main
from bigr_jax.interop import files

HERE = Path(__file__).parent
TINY = HERE.parent / "tiny.py"
SNAPSHOT = HERE / "mistakes.txt"
LINES = 15
RUN = "runs/digits"

Prepare = Callable[[pytest.MonkeyPatch], object]


class Mistake(NamedTuple):
    """A mistake: what is wrong, the command, what its message must name, and what is there.

    named    the offending key or value, and what else must occur
    prepare  (monkeypatch) -> anything: makes files in the folder that the command runs in
    devices  with more than 1, a process of its own has as many
    """

    title: str
    command: str
    named: tuple[str, ...]
    prepare: Prepare | None = None
    devices: int = 1


def written(path: str, content: str | bytes) -> Prepare:
    def write(patch: pytest.MonkeyPatch) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def absent(module: str) -> Prepare:
    find = importlib.util.find_spec
    return lambda patch: patch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name)
    )


def photos(patch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        Path("photos", name, "one.png").write_text("no image")


def picture(patch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save("digit.png")
    Path("letter.png").write_text("Dear reader")


def numbers(patch: pytest.MonkeyPatch) -> None:
    np.savez("digits.npz", pixels=np.zeros((4, 8, 8, 1), np.uint8), y=np.zeros(4, np.int32))


def weights(patch: pytest.MonkeyPatch) -> None:
    files.write("bae.npz", {"encoder.conv_in.weight": np.zeros((8, 1, 3, 3), np.float32)})
    Path("torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")


def mine(patch: pytest.MonkeyPatch) -> None:
    shutil.copy(TINY, "mine.py")


def in_use(patch: pytest.MonkeyPatch) -> Any:
    who = '{"host": "alpha", "pid": 4711, "since": "2026-01-02 03:04:05+00:00"}'
    mine(patch)
    written("runs/mine-small/writer.json", who)(patch)
    file = open("runs/mine-small/writer.json")  # noqa: SIM115  held until the command is done
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def damaged(patch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(RUN).resolve(), "runs/old")
    for path in Path("runs/old").glob("generator/checkpoints/*/state/d/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")


def untrained(patch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(RUN).resolve(), "runs/old")
    shutil.rmtree("runs/old/generator/checkpoints")


def full(patch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    mine(patch)
    patch.setattr("bigr_jax.files.os", SimpleNamespace(**{**vars(os), "fsync": fails}))


def greedy(patch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")

    mine(patch)
    patch.setattr("bigr_jax.train.loop.compile_step", fails)


def both(*steps: Prepare) -> Prepare:
    return lambda patch: [step(patch) for step in steps]


SMOKE = "--config=bigr:smoke"
MINE = "--config=./mine.py"
OLD = f"--workdir={RUN}"
MISTAKES = (
    # Words that are not known.
    Mistake("unknown command", "trian --config=bigr:small", ("'trian'", "'train'")),
    Mistake("unknown flag", f"train {SMOKE} --work_dir=runs/a", ("--work_dir", "--workdir")),
    Mistake("a flag without its value", f"train {SMOKE} --workdir", ("--workdir",)),
    Mistake("a flag that is no number", f"sample {OLD} --per_class=many", ("--per_class", "many")),
    Mistake("no --config", "train", ("--config", "bigr:small", "bigr list")),
    Mistake("a word too many", "train bigr:small", ("bigr:small", "--config=bigr:small")),
    Mistake("no --workdir", "sample", ("--workdir",)),
    Mistake("unknown experiment", "train --config=bgir:small", ("'bgir'", "'bigr'")),
    Mistake("unknown variant", "train --config=bigr:smal", ("'smal'", "'small'", "paper")),
    Mistake("no such config file", "train --config=./idea.py", ("./idea.py",)),
    Mistake(
        "a config file with an error",
        "train --config=./idea.py",
        ("idea.py", "line 2"),
        written("idea.py", "VARIANTS = ('small',)\ndef get_config(variant:\n"),
    ),
    Mistake(
        "a config file without get_config",
        "train --config=./idea.py",
        ("idea.py", "get_config"),
        written("idea.py", "VARIANTS = ('small',)\n"),
    ),
    Mistake(
        "an experiment file without a study",
        "prove --config=./idea.py",
        ("idea.py", "study"),
        lambda patch: Path("idea.py").write_text(TINY.read_text().partition("def study")[0]),
    ),
    # Settings.
    Mistake("misspelt setting", f"train {SMOKE} --config.model.dept=4", ("model.dept", "'depth'")),
    Mistake(
        "a setting of another type",
        f"train {SMOKE} --config.model.depth=deep",
        ("model.depth", "'deep'", "int"),
    ),
    Mistake(
        "a section for a setting",
        f"train {SMOKE} --config.model=4",
        ("config.model", "--config.model."),
    ),
    Mistake(
        "a value that is none of those",
        f"train {SMOKE} --config.sample.order=entrpy",
        ("sample.order", "'entrpy'", "'entropy'"),
    ),
    Mistake(
        "a duration without its unit",
        f"train {SMOKE} --config.train.tokenizer.duration=100",
        ("train.tokenizer.duration", "'100 steps'"),
    ),
    Mistake(
        "a batch that micro-batches do not divide",
        f"train {SMOKE} --config.train.generator.accumulate=3",
        ("train.generator.batch_size", "accumulate", "e.g. "),
    ),
    Mistake(
        "a batch that devices do not divide",
        f"train {MINE} --config.train.first.batch_size=6",
        ("train.first.batch_size=6", "4"),
        mine,
        devices=4,
    ),
    Mistake("wrong mesh product", f"train {SMOKE} --config.mesh.data=3", ("data=3", "1 device")),
    Mistake(
        "a pattern that matches no parameter",
        f"train {MINE} \"--config.sharding=(('attention', 'model'),)\"",
        ("attention",),
        mine,
    ),
    Mistake("unknown stage", f"train {SMOKE} --stage=generater", ("generater", "'generator'")),
    Mistake("--base without --stage", f"train {SMOKE} --base={RUN}", ("--base", "--stage")),
    Mistake(
        "--base of another tokenizer",
        f"train {SMOKE} --config.tokenizer.bits=6 --stage=generator --base={RUN}",
        (RUN, "'tokenizer'", "float32[6, 8]"),
    ),
    # Data.
    Mistake(
        "no such folder of images",
        f"train {SMOKE} --config.data.source=folder:photos",
        ("data.source", "photos"),
    ),
    Mistake(
        "a folder without images",
        f"train {SMOKE} --config.data.source=folder:photos",
        ("photos", ".png"),
        lambda patch: Path("photos/cat").mkdir(parents=True),
    ),
    Mistake(
        "images that cannot be read",
        f"train {SMOKE} --config.data.source=folder:photos",
        ("photos",),
        photos,
    ),
    Mistake(
        "a data set that is not here",
        f"train {SMOKE} --config.data.source=fashion_mnist",
        ("fashion_mnist", "bigr data fetch fashion_mnist"),
    ),
    Mistake(
        "a data set that tensorflow-datasets has not prepared",
        f"train {SMOKE} --config.data.source=tfds:imagenet2012 --config.data.data_dir=tfds",
        ("imagenet2012", "tfds"),
    ),
    Mistake(
        "arrays of other names",
        f"train {SMOKE} --config.data.source=npz:digits.npz",
        ("digits.npz", "pixels", "images"),
        numbers,
    ),
    Mistake("unknown data", f"train {SMOKE} --config.data.source=mnist", ("'mnist'", "mnist5k")),
    # Work directories.
    Mistake(
        "a work directory of another config",
        f"train {SMOKE} --config.model.depth=1 {OLD}",
        ("model.depth was 2, now 1", "--workdir"),
    ),
    Mistake(
        "a work directory in use",
        f"train {MINE}",
        ("runs/mine-small", "4711", "alpha"),
        in_use,
    ),
    Mistake(
        "a place that cannot be written to",
        f"train {MINE} --workdir=notes.txt/run",
        ("--workdir=notes.txt/run",),
        both(mine, written("notes.txt", "")),
    ),
    Mistake(
        "a disk that is full",
        f"train {MINE}",
        ("runs/mine-small/config.json", "No space left"),
        full,
    ),
    Mistake("no work directory", "sample --workdir=runs/none", ("--workdir=runs/none",)),
    Mistake(
        "no checkpoint to draw from",
        "sample --workdir=runs/old",
        ("runs/old", "'generator'", "bigr train"),
        untrained,
    ),
    Mistake("a damaged checkpoint", "sample --workdir=runs/old", ("runs/old",), damaged),
    Mistake(
        "a loss that is not a number",
        f"train {MINE} --config.method.poison=loss --config.method.at=1",
        ("nonfinite",),
        mine,
    ),
    Mistake("out of memory", f"train {MINE}", ("batch_size=8", "batch_size=4 fits"), greedy),
    # Weights.
    Mistake(
        "weights of another model",
        f"convert tokenizer=bae.npz {SMOKE} --workdir=runs/new",
        ("bae.npz", "BinaryAutoencoder", "--config"),
        weights,
    ),
    Mistake(
        "weights as PyTorch pickles",
        f"convert tokenizer=bae.pt {SMOKE} --workdir=runs/new",
        ("bae.pt",),
        written("bae.pt", b""),
    ),
    Mistake(
        "weights that are cut short",
        f"convert tokenizer=torn.safetensors {SMOKE} --workdir=runs/new",
        ("torn.safetensors",),
        weights,
    ),
    Mistake(
        "no weights",
        f"convert tokenizer=none.npz {SMOKE} --workdir=runs/new",
        ("none.npz",),
    ),
    # Drawing and editing.
    Mistake("a class out of range", f"sample {OLD} --classes=12", ("12", "0 to 9")),
    Mistake(
        "a setting of training, not of drawing",
        f"sample {OLD} --config.model.depth=3",
        ("model.depth",),
    ),
    Mistake(
        "a file that is no image",
        f"edit inpaint {OLD} --image=letter.png --box=0,0,4,8",
        ("--image=letter.png",),
        picture,
    ),
    Mistake(
        "a box outside of the image",
        f"edit inpaint {OLD} --image=digit.png --box=4,0,8,8",
        ("--box=4,0,8,8", "8 x 8"),
        picture,
    ),
    # Studies, sweeps and plans.
    Mistake("a sweep of nothing", f"sweep {SMOKE}", ("model.depth=2,4",)),
    Mistake("a sweep of no setting", f"sweep {SMOKE} model.dept=2,4", ("model.dept", "'depth'")),
    Mistake("unknown arm", f"prove {SMOKE} \"--config.study.arms=('bigr',)\"", ("'bigr'", "BiGR")),
    Mistake(
        "unknown topology", f"plan {SMOKE} --topology=v5e:3x3", ("--topology=v5e:3x3", "v5e:16x16")
    ),
    Mistake("no libtpu", f"plan {SMOKE} --topology=v5e:2x4", ("pip install",), absent("libtpu")),
    Mistake("unknown axis of the mesh", f"plan {SMOKE} --mesh=dat=2", ("dat=2", "data=2,fsdp=4")),
    # Several hosts, and what is left.
    Mistake(
        "a coordinator without a port",
        f"train {SMOKE} --coordinator=host0 --processes=2 --process=0",
        ("--coordinator=host0", "HOST:PORT"),
    ),
    Mistake(
        "a process out of range",
        f"train {SMOKE} --coordinator=host0:1234 --processes=2 --process=2",
        ("--process=2", "0 to 1"),
    ),
    Mistake(
        "codes of no such split", f"encode {OLD} --out=codes --split=val", ("'val'", "train, test")
    ),
    Mistake("no such weights to measure with", f"eval {OLD} --inception=i.npz", ("i.npz",)),
    Mistake("no gradio", f"demo {OLD}", ("gradio", "pip install"), absent("gradio")),
    Mistake("no results to report", "report", ("--results=results",)),
    Mistake("unknown data to fetch", "data fetch mnist", ("'mnist'", "'mnist5k'")),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.title for mistake in MISTAKES])
def test_a_mistake_is_told_with_its_mend(
    mistake: Mistake,
    smoke: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_python: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGR_DATA", str(tmp_path / "data"))
    Path("runs").mkdir()
    Path(RUN).symlink_to(smoke)
    kept = mistake.prepare and mistake.prepare(monkeypatch)
    argv = shlex.split(mistake.command)
    if mistake.devices > 1:
        done = run_python(["-m", "bigr_jax", *argv], devices=mistake.devices, cwd=tmp_path)
        status, error = done.returncode, done.stderr
    else:
        status, error = main(argv), capsys.readouterr().err
    del kept
    text = normal(error, tmp_path, smoke)
    assert status == 2, text
    assert "Traceback" not in text
    assert len(text.splitlines()) <= LINES
    for name in mistake.named:
        assert name in text
    if os.environ.get("BIGR_REGENERATE") == "1":
        write({**read(), mistake.title: f"$ bigr {mistake.command}\n{text}"})
    assert read()[mistake.title] == f"$ bigr {mistake.command}\n{text}"


def test_no_other_mistake_is_on_record() -> None:
    assert list(read()) == [mistake.title for mistake in MISTAKES]


def normal(text: str, place: Path, smoke: Path) -> str:
    """Returns a message as it reads on any machine."""
    for path, name in ((place, "."), (smoke, RUN), (HERE.parents[1], "BIGR")):
        text = text.replace(f"{path}/", f"{name}/".removeprefix("./")).replace(str(path), name)
    text = re.sub(r"libtpu==[\d.*]+", "libtpu==VERSION", text)
    return re.sub(r"\d+\.\d s\b", "N s", text)


def read() -> dict[str, str]:
    """Returns {title: command and message} of the snapshot."""
    parts = re.split(r"^# (.+)\n", SNAPSHOT.read_text("utf-8"), flags=re.MULTILINE)[1:]
    texts = [text.removesuffix("\n") for text in parts[1::2]]
    return dict(zip(parts[::2], [f"{text}\n".replace("\n\n", "\n") for text in texts], strict=True))


def write(found: dict[str, str]) -> None:
    """Writes the snapshot in the order of the table."""
    titles = [mistake.title for mistake in MISTAKES if mistake.title in found]
    text = "\n".join(f"# {title}\n{found[title]}" for title in titles)
    SNAPSHOT.write_text(text, "utf-8")
