"""Small files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from typing import Any


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON through a temporary file in the same folder."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` through a temporary file in the same folder."""
    name = os.fspath(path)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name + ".part", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name + ".part", name)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value in a JSON file, or None when there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
