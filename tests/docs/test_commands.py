"""Every command of the README and of docs/ is read by its own parser; those that take seconds are
done, and of those that train all is built that a run builds before its first step.

What the commands do is tested where they are tested: tests/cli, tests/contract, tests/scripts.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax import pictures, registry
from bigr_jax.cli import command
from bigr_jax.cli.main import COMMANDS, main
from bigr_jax.data import cards
from bigr_jax.data.absent import open_or_describe
from bigr_jax.errors import UserError
from bigr_jax.lab import sweep
from bigr_jax.losses.perceptual import stand_in
from bigr_jax.train import topologies
from bigr_jax.train.run import Run

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Done as they stand, in a folder of their own.
DONE = ("list", "show", "new", "report", "doctor")
BUILT = ("train", "prove", "sweep", "plan")
# Programs of others, which a page may show the use of.
OTHERS = ("cd", "export", "git", "mkdir", "pip", "pytest", "python3", "sbatch", "source", "xpk")
# On the devices of this machine, whatever machine is spoken of.
HERE = {"mesh.data": "-1", "mesh.fsdp": "1", "mesh.model": "1", "mesh.seq": "1"}


def blocks(page: Path) -> Iterator[str]:
    """Yields the lines of a page's blocks of bash, those that go on put together."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line


def shown() -> Iterator[tuple[str, str]]:
    """Yields (path, text) of the files that pages show whole, named in their title."""
    for page in PAGES:
        yield from re.findall(
            r'^```python title="(.+?)"\n(.*?)^```', page.read_text("utf-8"), re.M | re.S
        )


def found() -> list[Any]:
    """Returns (words, page) of every command, each once, where it stands first."""
    places: dict[tuple[str, ...], str] = {}
    for page in PAGES:
        for line in blocks(page):
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            places.setdefault(tuple(words), page.name)
    return [
        pytest.param(words, id=f"{page}: {' '.join(words)}"[:90]) for words, page in places.items()
    ]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Makes what a reader is said to have: {what stands in a page: what is here}."""
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    for number, name in enumerate(["one", "two"] * 10):
        path = folder / "images" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save_png(str(path), rng.integers(0, 256, (8, 8, 3), np.uint8))
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text("It was a dark and stormy night. " * 3000)
    return {
        "folder:/my/images": f"folder:{folder}/images",
        "folder:cifar10": f"folder:{folder}/images",
        # Weights of others are stood in for, as in a plan.
        "lpips.npz": "",
        "text:/my/books": f"text:{folder}/books",
    }


def test_there_are_commands_of_every_kind() -> None:
    told = {param.values[0][1] for param in found() if param.values[0][0] == "bigr"}
    assert told == set(COMMANDS)


@pytest.mark.parametrize("words", found())
def test_command(
    words: tuple[str, ...],
    mine: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = words[0]
    if program.startswith(("scripts/", "benchmarks/")):
        assert (ROOT / program).is_file()
    elif program == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "python":
        read_by_script(list(words[1:]), monkeypatch, capsys)
    else:
        assert program == "bigr" or program in OTHERS
    for extra in re.findall(r"^(?:bigr_jax|\.)\[(\w+)\]$", "\n".join(words), re.M):
        assert f'"{extra}": [' in (ROOT / "setup.py").read_text("utf-8")
    for word in words:
        if word.startswith("scripts/"):
            assert (ROOT / word).is_file()
    if "bigr" in words:
        monkeypatch.chdir(tmp_path)
        for path, text in shown() if any("=configs/" in word for word in words) else ():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, "utf-8")
        rehearse(list(words[words.index("bigr") + 1 :]), mine)


def read_by_script(words: list[str], monkeypatch: Any, capsys: Any) -> None:
    """Lets a script of this repository read its arguments, and no more."""
    path = ROOT / words[0]
    monkeypatch.syspath_prepend(str(path.parent))
    parse = argparse.ArgumentParser.parse_args

    class Read(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise Read

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Read):
        registry.run_file(path).main(words[1:])


def rehearse(words: list[str], mine: dict[str, str]) -> None:
    """Does what a command of `bigr` does before it takes long."""
    name = words[0]
    chosen = importlib.import_module(f"bigr_jax.cli.{name}").COMMAND
    arguments = command.parse(chosen, words[1:])
    if name in DONE or words == ["data", "list"]:
        for folder in ("results", "experiments") if name == "report" else ():
            shutil.copytree(ROOT / folder, folder)
        assert main(words) == 0
    elif name in BUILT:
        build(arguments, mine)
    elif arguments.spec:
        arguments.config()


def build(arguments: command.Arguments, mine: dict[str, str]) -> None:
    """Builds the run of a config: every stage's shapes, optimizer and schedule, on its data."""
    overrides = {key: mine.get(text, text) for key, text in arguments.overrides.items()}
    config = arguments._replace(overrides=overrides).config()
    if arguments.positional:
        assert sweep.parse(arguments.positional, config)
    given = {name: arguments.flags[name].value for name in arguments.flags}
    if given.get("mesh"):
        topologies.mesh_sizes(given["mesh"])
    config = configs.override(config, HERE)
    if config.data.source == "interactions:ml-100k" and cards.locate("ml-100k") is None:
        config.data.update(num_classes=9, examples=9)
    if config.data.source.startswith("codes:"):
        return
    sources = {split: open_or_describe(config.data, split) for split in ("train", "test")}
    with stand_in():
        run = Run(config, os.devnull, sources=sources, training=False)
    run.stage_names(given.get("stage"))


def test_the_lines_of_python_run_on_a_work_directory(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(smoke)
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text("utf-8"), re.M | re.S)
    found: dict[str, Any] = {}
    exec(compile(lines, "README.md", "exec"), found)
    images, fixed, left = found["images"], found["fixed"], found["mask"].shape[1] // 2
    assert images.dtype == np.uint8 and len(images) == 3 and len(fixed) == 8
    np.testing.assert_array_equal(
        fixed[:, :, :left], np.broadcast_to(images[0], fixed.shape)[:, :, :left]
    )
    assert found["features"].dtype == np.float32 and len(found["features"]) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bigr train --config=bigr:small --config.model.dept=4", "did you mean 'depth'"),
        ("bigr train --config=bigr:smal", "did you mean 'small'"),
        ("bigr sweep --config=bigr:small model.targets=flip,z0", "targets"),
        ("bigr plan --config=bigr:small --mesh=date=8", "date"),
        ("bigr train --config=bigr:small --stage=generators", "generator"),
        ("bigr train --config=bigr:small --config.data.source=folder:/no/images", "/no/images"),
        ("bigr show bigr:small --wrkdir=runs", "--wrkdir"),
    ],
)
def test_a_page_that_is_wrong_is_seen(line: str, told: str, mine: dict[str, str]) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        rehearse(shlex.split(line)[1:], mine)
