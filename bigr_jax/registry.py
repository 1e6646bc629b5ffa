"""Finds experiments and configs by slug or by path, and checks what an experiment must have."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import os
import re
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bigr_jax.errors import UserError, nearest

FIELDS = ("Claim", "Evidence", "Command")
SIGNATURES = {"stages": ("config",), "study": ("config", "lab")}


class Card(NamedTuple):
    """What the docstring of an experiment says, "" where it does not; read without importing it."""

    slug: str
    path: str
    doc: str
    claim: str
    evidence: str
    command: str

    @property
    def title(self) -> str:
        """The docstring's first line."""
        return self.doc.partition("\n")[0]


class Experiment(NamedTuple):
    """A paper's recipe: what its docstring promises, and its two functions.

    stages  (config) -> {stage: Method}, in the order of training
    study   (config, lab) -> None: the evidence
    """

    slug: str
    path: str
    doc: str
    claim: str
    evidence: str
    command: str
    stages: Callable[..., Any]
    study: Callable[..., None]


def names() -> list[str]:
    """Returns the slugs of all experiments, sorted."""
    return _slugs("experiments")


def describe(ref: str) -> Card:
    """Returns what an experiment, a slug or a path, says of itself; imports nothing.

    Raises UserError when there is no such experiment.
    """
    path = locate("experiments", ref)
    with _readable(path):
        tree = ast.parse(path.read_text("utf-8"))
    doc = inspect.cleandoc(ast.get_docstring(tree) or "")
    return Card(path.stem, str(path), doc, *(_field(doc, name) for name in FIELDS))


def load(ref: str) -> Experiment:
    """Imports an experiment, a slug or a path, and checks that it is whole.

    Raises UserError when there is no such experiment, or saying precisely what it lacks.
    """
    card = describe(ref)
    module = run_file(card.path)
    lacks = [
        f"a line '{name}  ...' in its docstring"
        for name, text in zip(FIELDS, (card.claim, card.evidence, card.command), strict=True)
        if not text
    ]
    for name, wanted in SIGNATURES.items():
        function = getattr(module, name, None)
        if not callable(function):
            lacks.append(f"a function {name}({', '.join(wanted)})")
        elif not _takes(function, wanted):
            lacks.append(f"{name}({', '.join(wanted)}): it has {name}{inspect.signature(function)}")
    if lacks:
        raise UserError(f"{card.path} lacks {'; '.join(lacks)}")
    return Experiment(*card, stages=module.stages, study=module.study)


def config_path(ref: str) -> str:
    """Returns the path of the config file of a slug, or the path itself.

    Raises UserError when there is no such file.
    """
    return str(locate("configs", ref))


def locate(kind: str, ref: str) -> Path:
    """Returns the file of `kind` ("experiments", "configs") that `ref` names, a path or a slug.

    A slug is looked for beside the package in a checkout, else in the installed package.
    Raises UserError when there is no such file, naming the nearest.
    """
    if ref.endswith(".py") or os.sep in ref:
        path = Path(ref).expanduser()
        if not path.is_file():
            beside = (p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else ()
            hint = nearest(path.name, beside) or "; `bigr new NAME` writes one to start from"
            raise UserError(f"{ref} is not a file{hint}")
        return path
    for folder in _folders(kind):
        path = folder / f"{ref}.py"
        if not ref.startswith("_") and path.is_file():
            return path
    known = _slugs(kind)
    listed = f"; known: {', '.join(known[:8])}{', ...' * (len(known) > 8)}" if known else ""
    hint = nearest(ref, known) or listed
    raise UserError(
        f"{ref!r} is no {kind[:-1]}{hint}. `bigr list` shows all; a file of your own "
        f"is given by its path, ./{ref}.py"
    )


def run_file(path: str | Path) -> types.ModuleType:
    """Returns the module that a Python file defines; the file is run anew at each call."""
    path = Path(path).resolve()
    # Unlike any importable name; dataclasses look their module up by it while the file runs.
    name = f"bigr_jax:{path.stem}:{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _readable(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns an error of Python's grammar in a file into one line; others keep their traceback."""
    try:
        yield
    except SyntaxError as error:
        if error.filename not in (str(path), None, "<unknown>"):
            raise
        line = (error.text or "").strip()
        raise UserError(f"{path}, line {error.lineno}: {error.msg}: {line}") from error


def _folders(kind: str) -> list[Path]:
    # A checkout's own, also where another checkout is the one that is installed.
    root = Path(__file__).resolve().parents[1]
    if (root / "setup.py").is_file() and (root / kind).is_dir():
        return [root / kind]
    spec = importlib.util.find_spec(f"bigr_jax.{kind}")
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


def _slugs(kind: str) -> list[str]:
    found = {path.stem for folder in _folders(kind) for path in folder.glob("[!_]*.py")}
    return sorted(found)


def _field(doc: str, name: str) -> str:
    """Returns what follows a word at a line's start, with the indented lines below it."""
    match = re.search(rf"^{name}[ \t]+(\S.*(?:\n[ \t]+\S.*)*)", doc, re.MULTILINE)
    return " ".join(match[1].split()) if match else ""


def _takes(function: Callable[..., Any], wanted: tuple[str, ...]) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    needed = [p.name for p in parameters if p.default is p.empty]
    return tuple(needed) == wanted
