"""`bigr new`: what it writes works at once, in a checkout and in a folder of the user's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigr_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
RUFF = ("-m", "ruff", "check", "--no-cache")
WRITTEN = ["experiments/a_b.py", "configs/a_b.py", "tests/experiments/test_a_b.py"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, run_python: Any) -> Path:
    """An empty folder with a new experiment in it."""
    folder = tmp_path_factory.mktemp("own")
    done = run_python(["-m", "bigr_jax", "new", "a_b"], cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "".join(f"wrote {path}\n" for path in WRITTEN) + "\n"
        "bigr train --config=configs/a_b.py:smoke\n"
        "bigr prove --config=configs/a_b.py:small\n"
        "pytest tests/experiments/test_a_b.py\n"
    )
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, run_python: Any) -> Path:
    """A copy of what a checkout needs, with a new experiment in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("bigr_jax", "experiments", "configs", "tests/contract"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("tests/conftest.py", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder / name)
    done = in_checkout(run_python, folder, "-m", "bigr_jax", "new", "a_b")
    shapes = "wrote tests/contract/a_b.txt"
    assert done.startswith("\n".join([*(f"wrote {path}" for path in WRITTEN), shapes, "", "bigr"]))
    assert done.endswith("--config=a_b:small\npytest tests/experiments/test_a_b.py\n")
    return folder


def in_checkout(run_python: Any, folder: Path, *arguments: str) -> str:
    done = run_python(arguments, cwd=folder, env={"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_a_folder_of_ones_own_trains_and_proves(own: Path, run_python: Any) -> None:
    config = "--config=configs/a_b.py:smoke"
    for words in (["train", config], ["prove", config]):
        done = run_python(["-m", "bigr_jax", *words], cwd=own)
        assert done.returncode == 0, done.stderr
    results = json.loads((own / "runs/a_b-smoke/results.json").read_text("utf-8"))
    assert results["stages"]["reader"]["test"]["accuracy"] > 0.5
    written = json.loads((own / "results/a_b.json").read_text("utf-8"))
    (claim,) = written["claims"]
    assert claim["holds"] and claim["value"] > claim["against"] + 0.1


def test_its_tests_pass_in_a_folder_of_ones_own(own: Path, run_python: Any) -> None:
    done = run_python(["-m", "pytest", "-q", "-p", "no:cacheprovider", WRITTEN[2]], cwd=own)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout
    done = run_python([*RUFF, "--isolated", "--line-length=100", "."], cwd=own)
    assert done.returncode == 0, done.stdout


def test_in_a_checkout_it_keeps_the_contract(checkout: Path, run_python: Any) -> None:
    contract = ["tests/contract/test_every_experiment.py", "-k", "a_b"]
    pytest_words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0")
    said = in_checkout(run_python, checkout, *pytest_words, WRITTEN[2], *contract)
    assert " passed" in said and "skipped" not in said


def test_in_a_checkout_ruff_and_mypy_are_content(checkout: Path, run_python: Any) -> None:
    in_checkout(run_python, checkout, *RUFF, *WRITTEN)
    in_checkout(run_python, checkout, "-m", "ruff", "format", "--check", "--no-cache", *WRITTEN)
    own_folder = [f"--cache-dir={checkout}/mypy", "--follow-imports=silent"]
    in_checkout(run_python, checkout, "-m", "mypy", *own_folder, *WRITTEN)


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main(["new", *words]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    return error


@pytest.mark.parametrize(
    "name", ["My_method", "2nd", "a-b", "a__b", "_a", "a_", "class", "ä", "a b"]
)
def test_a_name_is_in_snake_case(name: str, capsys: Capture, tmp_path: Path) -> None:
    said = refused(capsys, name, f"--into={tmp_path}")
    assert said == f"bigr: {name!r} is no name; legal: a Python name in snake case, as my_method\n"
    assert not list(tmp_path.iterdir())


def test_a_name_is_needed_and_only_one(capsys: Capture) -> None:
    assert refused(capsys) == "bigr: the name is missing, e.g. bigr new my_method\n"
    assert "'c' is one word too many; usage: bigr new NAME [--into=DIR]" in refused(
        capsys, "b", "c"
    )


def test_an_experiment_of_the_zoo_is_not_shadowed(capsys: Capture, tmp_path: Path) -> None:
    said = refused(capsys, "bigr", f"--into={tmp_path}")
    assert "'bigr' is an experiment already: " in said and "experiments/bigr.py" in said


@pytest.mark.parametrize("taken", WRITTEN)
def test_nothing_is_overwritten_and_nothing_half_written(
    taken: str, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / taken
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    said = refused(capsys, "a_b", f"--into={tmp_path}")
    assert said == f"bigr: {path} would be overwritten; give another name, or --into\n"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "mine"


def test_what_was_written_goes_where_the_rest_cannot_be(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "tests").write_text("not a folder")
    said = refused(capsys, "a_b", f"--into={tmp_path}")
    assert said.startswith(f"bigr: {tmp_path}/tests") and "cannot be written: " in said
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["tests"]


def test_the_folder_must_be_there(capsys: Capture, tmp_path: Path) -> None:
    said = refused(capsys, "a_b", f"--into={tmp_path}/nowhere")
    assert said == f"bigr: --into={tmp_path}/nowhere is not a folder\n"


def test_paths_are_said_as_one_can_type_them(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "my ideas"
    folder.mkdir()
    assert main(["new", "a_b", f"--into={folder}"]) == 0
    out = capsys.readouterr().out
    assert f"bigr train --config='{folder}/configs/a_b.py':smoke\n" in out
    assert f"pytest '{folder}/tests/experiments/test_a_b.py'\n" in out
