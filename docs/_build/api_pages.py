"""The API: a page for each room of the package, of its docstrings, read without importing it."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import docstrings

PACKAGE = "bigr_jax"
# From the ground up, as the rooms import each other; those that are not named here come behind.
ORDER = (
    *("ops", "nn", "models", "losses", "metrics", "data", "generate"),
    *("tasks", "train", "interop", "lab", "cli", "demo"),
)
# What the modules beside the rooms are, and rooms whose package says nothing of itself.
ABOUT = {
    "": "What stands beside the rooms: the contract of a method, settings, and a trained model in one object.",
    "ops": "Pure functions on arrays, without parameters.",
    "nn": "Layers: linen modules over the functions of `ops`.",
    "models": "Whole networks, with their published sizes.",
    "losses": "Objectives, as pure functions.",
    "metrics": "What is measured, as sums that add up over batches and hosts.",
    "generate": "Samplers and decoders, compiled whole.",
    "train": "The one trainer: loop, step, sharding, optimizers, checkpoints, writers.",
    "interop": "Published PyTorch weights, read and written.",
}
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_WIDTH = 88
# What a module says to no reader.
_SILENT = ("COMMAND", "TYPE_CHECKING")


class Room(NamedTuple):
    """A folder of the package; "" is the package itself, without its folders."""

    name: str
    page: str
    title: str


def rooms(where: Path) -> list[Room]:
    """Returns the rooms of the package, from the ground up."""
    found = [path.parent.name for path in (where / PACKAGE).glob("*/__init__.py")]
    known = [name for name in ORDER if name in found]
    names = ["", *known, *sorted(set(found) - set(known))]
    return [Room(name, f"api/{name or PACKAGE}.md", name or PACKAGE) for name in names]


def modules(where: Path, room: str) -> dict[str, Path]:
    """Returns {name within the package: file} of the public modules of a room, packages first."""
    folder = where / PACKAGE / room
    paths = folder.rglob("*.py") if room else folder.glob("*.py")
    found = {}
    for path in paths:
        parts = list(path.relative_to(where / PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    return dict(sorted(found.items()))


def place(path: str, where: Path) -> str | None:
    """Returns the page and anchor of a file or folder of the package, None where it has none."""
    name = ".".join(Path(path).with_suffix("").parts[1:])
    for room in rooms(where):
        if name == room.name:
            return room.page
        if name in modules(where, room.name):
            return f"{room.page}#{anchor(name)}"
    return None


def anchor(module: str) -> str:
    """Returns the anchor of a module on the page of its room."""
    return module or PACKAGE


@functools.cache
def pages(where: Path) -> dict[str, str]:
    """Returns {path: Markdown} of all rooms."""
    return {room.page: _page(where, room) for room in rooms(where)}


def _page(where: Path, room: Room) -> str:
    found = modules(where, room.name)
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in found.items()}
    about = ABOUT.get(room.name) or _first(trees.get(room.name))
    shown = {name: text for name, tree in trees.items() if (text := _module(name, tree))}
    rows = [
        f'<tr><td><a href="#{anchor(name)}"><code>{name or PACKAGE}</code></a></td>'
        f"<td>{docstrings.inline(_first(trees[name]))}</td></tr>"
        for name in shown
    ]
    title = f"{PACKAGE}.{room.name}" if room.name else PACKAGE
    return "\n\n".join(
        [f"# {title}", about, f"<table>{''.join(rows)}</table>", *shown.values(), ""]
    )


def _first(tree: ast.Module | None) -> str:
    """Returns the first sentence of a module's docstring, in one line."""
    doc = (ast.get_docstring(tree) if tree else "") or ""
    return " ".join(doc.partition("\n\n")[0].split())


def _module(name: str, tree: ast.Module) -> str:
    """Returns a module's section, "" of one that says and holds nothing."""
    doc = ast.get_docstring(tree) or ""
    parts = [_definition(name, node) for node in tree.body if _is_public(node)]
    if not doc and not parts:
        return ""
    parts = [_exported(tree), *parts]
    head = f"## {name or PACKAGE} {{ #{anchor(name)} }}"
    return "\n\n".join([head, docstrings.html(doc), _constants(tree), *parts])


def _exported(tree: ast.Module) -> str:
    """Returns the names that a module takes from others for its users, "" of none."""
    own = {node.name for node in tree.body if isinstance(node, (*_FUNCTION, ast.ClassDef))}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = [name for name in ast.literal_eval(node.value) if name not in own]
            names = [f"<code>{name}</code>" for name in names if not name.startswith("_")]
            return f"<p>Has from other modules: {', '.join(names)}.</p>" if names else ""
    return ""


def _is_public(node: ast.stmt) -> bool:
    return isinstance(node, (*_FUNCTION, ast.ClassDef)) and not node.name.startswith("_")


def _constants(tree: ast.Module) -> str:
    """Returns the module's public constants and names of types, one a line."""
    lines = []
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            target = node.target
        if not isinstance(target, ast.Name) or target.id.startswith("_"):
            continue
        assert isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
        line = f"{target.id} = {ast.unparse(node.value)}"
        if target.id not in _SILENT and line != "Array = jax.Array":
            lines.append(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ...")
    return _code("\n".join(lines)) if lines else ""


def _definition(module: str, node: ast.stmt) -> str:
    """Returns a public function or class: its heading, signature and docstring."""
    assert isinstance(node, (*_FUNCTION, ast.ClassDef))
    head = f"### {node.name} {{ #{anchor(module)}.{node.name} }}"
    doc = docstrings.html(ast.get_docstring(node) or "")
    if not isinstance(node, ast.ClassDef):
        return "\n\n".join([head, _code(_signature(node)), doc])
    return "\n\n".join([head, _code(_fields(node)), doc, *_methods(node)])


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns a function's head as it is called, over several lines where it is long."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = list(_arguments(node.args))
    line = f"{node.name}({', '.join(arguments)}){returns}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{node.name}(", *(f"    {text}," for text in arguments), f"){returns}"])


def _arguments(given: ast.arguments) -> Iterator[str]:
    """Yields the text of every argument but `self`."""
    places = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(places) - len(given.defaults)) + list(given.defaults)
    for index, (argument, default) in enumerate(zip(places, defaults, strict=True)):
        if index or argument.arg not in ("self", "cls"):
            yield _argument(argument, default)
    if given.vararg:
        yield f"*{_argument(given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(argument, default)
    if given.kwarg:
        yield f"**{_argument(given.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    if default is None:
        return text
    return f"{text} = {ast.unparse(default)}" if argument.annotation else f"{text}={default}"


def _fields(node: ast.ClassDef) -> str:
    """Returns a class's head with its fields."""
    bases = ", ".join(map(ast.unparse, node.bases))
    lines = [f"class {node.name}({bases}):" if bases else f"class {node.name}:"]
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            lines.append(f"    {ast.unparse(item)}")
    if len(lines) == 1:
        lines[0] = lines[0].removesuffix(":")
        for item in node.body:
            if isinstance(item, _FUNCTION) and item.name == "__init__":
                return f"{lines[0]}\n\n{_signature(item).replace('__init__', node.name, 1)}"
    return "\n".join(lines)


def _methods(node: ast.ClassDef) -> Iterator[str]:
    """Yields the public methods of a class, and how it is called."""
    for item in node.body:
        named = isinstance(item, _FUNCTION) and (item.name[0] != "_" or item.name == "__call__")
        if isinstance(item, _FUNCTION) and named and (doc := ast.get_docstring(item)):
            prefix = "property " if _is_property(item) else ""
            head = item.name if prefix else _signature(item)
            yield (
                f'<div class="method">{_code(prefix + head, plain=True)}'
                f"{docstrings.html(inspect.cleandoc(doc))}</div>"
            )


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    kinds = ("property", "functools.cached_property", "cached_property")
    return any(ast.unparse(mark) in kinds for mark in node.decorator_list)


def _code(text: str, plain: bool = False) -> str:
    return f"<pre><code>{escape(text)}</code></pre>" if plain else f"```python\n{text}\n```"
