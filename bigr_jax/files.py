"""Small files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON through a temporary file in the same folder."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` through a temporary file in the same folder."""
    name = os.fspath(path)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with whole(name) as part, open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a file beside `path` to write to, which then takes its place; whatever
    interrupts that, Ctrl-C too, leaves neither.
    """
    part = f"{os.fspath(path)}.part"
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        if isinstance(error, OSError) and error.filename is None:
            # A full disk does not say of what file it is.
            error.filename = os.fspath(path)
        raise


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value in a JSON file, or None when there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
