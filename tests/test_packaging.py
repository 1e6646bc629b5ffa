"""What users get: a whole wheel, light imports, and code that runs no foreign code."""

from __future__ import annotations

import ast
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("bigr_jax", "experiments", "configs")
    for path in (ROOT / folder).rglob("*.py")
)


def can_build() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.skipif(not can_build(), reason="building needs setuptools>=77")
def test_the_wheel_has_everything(run_python: Any, tmp_path: Path) -> None:
    # Built from links to the sources, so that nothing is written beside them.
    for path in ("bigr_jax", "experiments", "configs", "setup.py", "pyproject.toml"):
        (tmp_path / path).symlink_to(ROOT / path)
    for path in ("README.md", "LICENSE"):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    pip = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = run_python([*pip, "--wheel-dir", "dist", "."], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in held if ".dist-info/" in name}
        meta = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    wanted = {
        name if name.startswith("bigr_jax/") else f"bigr_jax/{name}" for name in map(names, SOURCES)
    }
    assert wanted <= held
    templates = {names(path) for path in (ROOT / "bigr_jax/cli/templates").iterdir()}
    assert {"bigr_jax/cli/templates/experiment.txt"} < templates <= held
    assert {name.split("/")[0] for name in held} == {"bigr_jax", info}
    assert "License-Expression: Apache-2.0" in meta
    assert "Requires-Python: >=3.11" in meta
    assert licence == (ROOT / "LICENSE").read_text("utf-8")
    assert "bigr = bigr_jax.__main__:run" in scripts


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) >= 200


def test_importing_the_package_imports_next_to_nothing(run_python: Any) -> None:
    code = (
        "import sys, bigr_jax;"
        "print([n for n in ('jax', 'numpy', 'tensorflow', 'torch', 'absl') if n in sys.modules])"
    )
    done = run_python(["-c", code])
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_python_module_is_the_command(run_python: Any) -> None:
    done = run_python(["-X", "importtime", "-m", "bigr_jax", "list"])
    assert done.returncode == 0
    assert done.stdout.startswith("name")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "bigr_jax.registry" in imported
    assert not imported & {"tensorflow", "torch", "jax"}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_no_foreign_code_is_run_and_no_banned_package_imported(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    roots = {name.partition(".")[0] for name in imported(tree)}
    assert not roots & {"pickle", "cloudpickle", "dill", "shelve", "marshal", "torch", "tensorflow"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("eval", "exec", "compile", "__import__"), f"line {node.lineno}"
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            allowed = keywords.get("allow_pickle", ast.Constant(False))
            assert isinstance(allowed, ast.Constant) and allowed.value is False, node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))
