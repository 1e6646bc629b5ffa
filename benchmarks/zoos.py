"""What there is to read in a code base, and whether today's JAX still has what it calls.

    python benchmarks/zoos.py . ~/big_vision ~/scenic

Reads the Python files of checkouts, and runs none of them; blank lines and comments do not count.
Tests are the files named `test_*.py` or `*_test.py` and those in a folder of tests.

A name is gone if the code imports it from jax, flax or optax and the installed version has no such
name: `jax.tree_map`, `flax.optim`. What an object of a class no longer has is not seen.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import os
import statistics
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

from timing import table

PACKAGES = ("jax", "flax", "optax")
HEAD = (
    "code base",
    "lines",
    "file: median, largest",
    "function: nine in ten, longest",
    "documented",
    "typed",
    "tests to code",
    "names gone",
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Read(NamedTuple):
    """What is in one file: its lines, tree, and whether it is a test."""

    lines: int
    tree: ast.Module
    test: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row per folder; the exit status is 2 where one holds no Python."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="checkouts")
    rows = []
    for folder in parser.parse_args(argv).folders:
        files = list(read(folder))
        if not any(not file.test for file in files):
            print(f"{folder}: no Python files that are no tests", file=sys.stderr)
            return 2
        rows.append([folder.resolve().name, *row(files)])
    print(table(HEAD, rows))
    return 0


def read(folder: Path) -> Iterator[Read]:
    """Yields the Python files under a folder; hidden folders, and what does not parse, aside."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "build" for part in parts):
            continue
        text = path.read_text("utf-8", errors="replace")
        with warnings.catch_warnings():
            # Of escapes in the strings of others.
            warnings.simplefilter("ignore")
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
        test = "tests" in parts[:-1] or path.stem.startswith("test_") or path.stem.endswith("_test")
        stripped = (line.strip() for line in text.splitlines())
        yield Read(sum(bool(line) and line[0] != "#" for line in stripped), tree, test)


def row(files: Sequence[Read]) -> list[str]:
    """Returns the cells of a code base behind its name."""
    code = [file for file in files if not file.test]
    lines = [file.lines for file in code if file.lines]
    tests = sum(file.lines for file in files if file.test)
    functions = [node for file in code for node in ast.walk(file.tree) if _is_function(node)]
    lengths = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    public = [node for file in code for node in file.tree.body if _is_public(node)]
    documented = sum(ast.get_docstring(node) is not None for node in public)
    arguments = [one for node in public if _is_function(node) for one in _arguments(node)]
    typed = sum(one.annotation is not None for one in arguments)
    gone = [name for file in files for name in missing(file.tree)]
    return [
        f"{sum(lines):,}",
        f"{statistics.median(lines):.0f}, {max(lines):,}",
        f"{lengths[int(0.9 * (len(lengths) - 1))]}, {lengths[-1]:,}" if lengths else "",
        f"{_percent(documented, len(public))}",
        f"{_percent(typed, len(arguments))}",
        f"{tests / sum(lines):.2f}",
        f"{len(gone)}",
    ]


def missing(tree: ast.Module) -> Iterator[str]:
    """Yields the names of PACKAGES that a file uses and that are not there, once per use."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    names[alias.asname] = alias.name
                else:
                    top = alias.name.partition(".")[0]
                    names[top] = top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if _ours(node.module) and not _exists(f"{node.module}.{alias.name}"):
                    yield f"{node.module}.{alias.name}"
    chains = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    inner = {id(node.value) for node in chains}
    # What a file hangs on a package itself is its own.
    own = tuple(_dotted(node) for node in chains if isinstance(node.ctx, ast.Store))
    for node in chains:
        dotted = _dotted(node)
        root, _, rest = dotted.partition(".")
        full = f"{names.get(root, '')}.{rest}"
        if id(node) in inner or not _ours(full) or dotted.startswith(own):
            continue
        # An import that is gone counts once, not with every use of it.
        if _exists(names[root]) and not _exists(full):
            yield full


def _ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


@functools.cache
def _exists(name: str) -> bool:
    """Whether a dotted name is there; what follows a name that is no module is not looked at."""
    parts = name.split(".")
    value: object = None
    for place, part in enumerate(parts):
        if place and not isinstance(value, types.ModuleType):
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if place and hasattr(value, part):
                    value = getattr(value, part)
                else:
                    value = importlib.import_module(".".join(parts[: place + 1]))
            except ModuleNotFoundError as error:
                # One that is there and wants a package which is not installed is not gone.
                return error.name not in (None, ".".join(parts[: place + 1]))
            except ImportError:
                return False
    return True


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_function(node: ast.AST) -> TypeGuard[Function]:
    return isinstance(node, Function)


def _is_public(node: ast.AST) -> TypeGuard[Function | ast.ClassDef]:
    return isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")


def _arguments(node: Function) -> list[ast.arg]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [one for one in every if one.arg not in ("self", "cls")]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else ""


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
