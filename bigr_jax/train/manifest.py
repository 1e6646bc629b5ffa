"""What a checkpoint step holds: the SHA-256 of every file, the shape and dtype of every array.

Orbax restores a file with a flipped bit without a word, and casts dtypes silently; a step is
trusted only after its manifest. That is {"content": ..., "sha256": ...} in one canonical spelling,
so that a change to the manifest itself shows as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from bigr_jax.train import patterns

NAME = "manifest.json"
# Orbax writes these beside the items when it commits, after the manifest; nothing reads them back.
_COMMIT_FILES = frozenset({"_CHECKPOINT_METADATA", "commit_success.txt"})
_THREADS = 8
_SHOWN = 5


class Leaf(NamedTuple):
    """Shape and dtype of one array of a state."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Manifest(NamedTuple):
    """The record of one step: {file: (bytes, SHA-256)} and {path of a parameter: Leaf}."""

    files: Mapping[str, tuple[int, str]]
    leaves: Mapping[str, Leaf]


class Damaged(Exception):
    """A step is not what was saved; the text names the file and what is wrong with it."""


def leaves(tree: Any) -> dict[str, Leaf]:
    """Returns {path: Leaf} of a tree of arrays or ShapeDtypeStructs."""
    return {
        patterns.path_of(keys): Leaf(tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def write(directory: epath.PathLike, arrays: Mapping[str, Leaf]) -> None:
    """Writes the manifest of a step directory, in one piece, after hashing all its files."""
    root = epath.Path(directory)
    names = sorted(name for name in _files(root) if name not in (*_COMMIT_FILES, NAME))
    with ThreadPoolExecutor(_THREADS) as pool:
        files = dict(zip(names, pool.map(lambda name: _digest(root / name), names), strict=True))
    part = root / f"{NAME}.part"
    with part.open("w") as file:
        file.write(_spelled(Manifest(files, arrays)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(root / NAME)


def verify(directory: epath.PathLike) -> Manifest:
    """Returns the manifest of a step directory after reading and hashing every file that it lists.

    Raises Damaged where the manifest or a file is missing, cut, or not what was saved.
    """
    root = epath.Path(directory)
    manifest = read(root)
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [(name, pool.submit(_digest, root / name)) for name in manifest.files]
    for name, job in jobs:
        size, digest = manifest.files[name]
        if isinstance(job.exception(), FileNotFoundError):
            raise Damaged(f"{name} is missing")
        if job.exception() is not None:
            raise Damaged(f"{name} cannot be read ({job.exception()})")
        if job.result()[0] != size:
            raise Damaged(f"{name} has {job.result()[0]} bytes, {size} were saved")
        if job.result()[1] != digest:
            raise Damaged(f"{name} does not hold the bytes that were saved")
    return manifest


def read(directory: epath.PathLike) -> Manifest:
    """Returns the manifest of a step directory. Raises Damaged where it is missing or altered."""
    path = epath.Path(directory) / NAME
    try:
        text = path.read_text()
        content = json.loads(text)["content"]
        files = {name: (size, digest) for name, (size, digest) in content["files"].items()}
        arrays = {k: Leaf(tuple(shape), dtype) for k, (shape, dtype) in content["leaves"].items()}
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing: the save was not finished") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise Damaged(f"{NAME} cannot be read") from None
    manifest = Manifest(files, arrays)
    if _spelled(manifest) != text:
        raise Damaged(f"{NAME} does not hold the bytes that were saved")
    return manifest


def differences(saved: Mapping[str, Leaf], wanted: Mapping[str, Leaf]) -> str:
    """Returns how `saved` arrays differ from `wanted` ones, naming paths; "" where they agree."""
    found = []
    for path in sorted({*saved, *wanted}):
        if path not in saved:
            found.append(f"{path} is not in the checkpoint, wanted {wanted[path]}")
        elif path not in wanted:
            found.append(f"{path} was saved as {saved[path]} and is not wanted")
        elif saved[path] != wanted[path]:
            found.append(f"{path} was saved as {saved[path]}, wanted {wanted[path]}")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _spelled(manifest: Manifest) -> str:
    def dump(value: Any) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    content = dump({"files": manifest.files, "leaves": manifest.leaves})
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f'{{"content":{content},"sha256":"{digest}"}}\n'


def _files(root: epath.Path, prefix: str = "") -> list[str]:
    names: list[str] = []
    for entry in root.iterdir():
        name = prefix + entry.name
        names += _files(entry, f"{name}/") if entry.is_dir() else [name]
    return names


def _digest(path: epath.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
