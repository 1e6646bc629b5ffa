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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from bigr_jax.train import patterns

NAME = "manifest.json"
# Orbax writes these beside the items when it commits, after the manifest; nothing reads them back.
_COMMIT_FILES = frozenset({"_CHECKPOINT_METADATA", "commit_success.txt"})
# Longer files are hashed in pieces, side by side.
PIECE = 1 << 24
_BLOCK = 1 << 20
_THREADS = max(8, os.cpu_count() or 1)
_SHOWN = 5


class Leaf(NamedTuple):
    """Shape and dtype of one array of a state."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Manifest(NamedTuple):
    """The record of one step: {file: (bytes, SHA-256 of its pieces)}, {path of a parameter: Leaf},
    and the number of the step, None where an older version wrote it.
    """

    files: Mapping[str, tuple[int, str]]
    leaves: Mapping[str, Leaf]
    step: int | None = None


class Damaged(Exception):
    """A step is not what was saved; the text names the file and what is wrong with it."""


def leaves(tree: Any) -> dict[str, Leaf]:
    """Returns {path: Leaf} of a tree of arrays or ShapeDtypeStructs."""
    return {
        patterns.path_of(keys): Leaf(tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def write(directory: epath.PathLike, arrays: Mapping[str, Leaf], step: int | None = None) -> None:
    """Writes the manifest of a step directory, in one piece, after hashing all its files."""
    root = epath.Path(directory)
    names = sorted(name for name in _files(root) if name not in (*_COMMIT_FILES, NAME))
    sizes = [(root / name).stat().length for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [
            [pool.submit(_digest, root / name, *piece) for piece in _pieces(size)]
            for name, size in zip(names, sizes, strict=True)
        ]
    digests = [" ".join(job.result() for job in pieces) for pieces in jobs]
    files = dict(zip(names, zip(sizes, digests, strict=True), strict=True))
    part = root / f"{NAME}.part"
    with part.open("w") as file:
        file.write(_spelled(Manifest(files, arrays, step)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(root / NAME)


def verify(directory: epath.PathLike, step: int | None = None) -> Manifest:
    """Returns the manifest of a step directory after reading and hashing every file that it lists.

    step  the one that it must be of, where its directory may have been renamed
    Raises Damaged where the manifest or a file is missing, cut, or not what was saved.
    """
    root = epath.Path(directory)
    manifest = read(root)
    if None not in (step, manifest.step) and step != manifest.step:
        raise Damaged(f"it was saved as step {manifest.step}")
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = {
            name: _submitted(pool, root, name, *entry) for name, entry in manifest.files.items()
        }
        for name, pieces in jobs.items():
            try:
                bad = [saved for job, saved in pieces if job.result() != saved]
            except OSError as error:
                raise Damaged(f"{name} cannot be read ({error})") from None
            if bad:
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
        step = content.get("step")
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing: the save was not finished") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise Damaged(f"{NAME} cannot be read") from None
    manifest = Manifest(files, arrays, step)
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

    content = dump({name: value for name, value in manifest._asdict().items() if value is not None})
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f'{{"content":{content},"sha256":"{digest}"}}\n'


def _files(root: epath.Path, prefix: str = "") -> list[str]:
    names: list[str] = []
    for entry in root.iterdir():
        name = prefix + entry.name
        names += _files(entry, f"{name}/") if entry.is_dir() else [name]
    return names


def _pieces(size: int) -> list[tuple[int, int]]:
    """Returns begin and end of the pieces of a file; one that is empty has one as well."""
    return [(begin, min(begin + PIECE, size)) for begin in range(0, max(size, 1), PIECE)]


def _submitted(
    pool: ThreadPoolExecutor, root: epath.Path, name: str, size: int, digest: str
) -> list[tuple[Future[str], str]]:
    """Returns the jobs that hash a file's pieces, each with what it must find."""
    path = root / name
    try:
        found = path.stat().length
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error})") from None
    if found != size:
        raise Damaged(f"{name} has {found} bytes, {size} were saved")
    digests = digest.split()
    # An older version hashed files whole.
    pieces = _pieces(size) if len(digests) > 1 else [(0, size)]
    if len(digests) != len(pieces):
        raise Damaged(f"{NAME} has {len(digests)} hashes for the {len(pieces)} pieces of {name}")
    jobs = [pool.submit(_digest, path, *piece) for piece in pieces]
    return list(zip(jobs, digests, strict=True))


def _digest(path: epath.Path, begin: int, end: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (block := file.read(min(_BLOCK, end - begin))):
            found.update(block)
            begin += len(block)
    return found.hexdigest()
