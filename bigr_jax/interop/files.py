"""Files of named tensors: npz and safetensors."""

from __future__ import annotations

import os
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  NumPy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bigr_jax.errors import UserError, one_of

State = dict[str, np.ndarray]

_BROKEN = (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, SafetensorError)

SUFFIXES = (".npz", ".safetensors")

# Published checkpoints are pickles of {name: tensor}, some nested once under "ema".
CONVERT = (
    "import sys; from torch import load; from numpy import savez; "
    "d = load(sys.argv[1], map_location='cpu', weights_only=True); "
    "savez(sys.argv[2], **{k: v.numpy() for k, v in d.get('ema', d).items()})"
)


def read(path: str | Path, part: str = "ae") -> State:
    """Reads every named tensor of an .npz or .safetensors file into host memory.

    A training checkpoint may hold several networks side by side, each under its own first name
    ("ae.", "disc.", "perceptual."): then only `part` is kept and its first name dropped. A file
    that nests the averaged weights under "ema." yields those. Any other file is returned as it is.

    Returns {published name: array}, dtypes as stored. Raises UserError for a missing file, for a
    PyTorch pickle (with the command that converts it), for another suffix and for a broken file.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"weights file {str(path)!r} does not exist")
    try:
        state = _read_npz(path) if path.suffix == ".npz" else dict(load_file(path))
    except _BROKEN as error:
        raise UserError(f"weights file {str(path)!r} cannot be read: {error}") from error
    return _select(state, part)


def write(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes {name: array} to an .npz or .safetensors file; raises UserError for another suffix."""
    path = Path(path)
    _check_suffix(path)
    objects = [name for name, value in state.items() if np.asarray(value).dtype.hasobject]
    if objects:
        raise ValueError(f"arrays of Python objects cannot be written: {objects}")
    arrays: dict[str, Any] = {name: np.asarray(value, order="C") for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if path.suffix == ".npz":
        with part.open("wb") as stream:
            np.savez(stream, **arrays)
    else:
        save_file(arrays, part)
    os.replace(part, path)


def _check_suffix(path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".th", ".bin", ".ckpt"):
        command = shlex.join(["python", "-c", CONVERT, str(path), str(path.with_suffix(".npz"))])
        raise UserError(
            f"weights file {str(path)!r} is a PyTorch pickle, which is never opened here; "
            f"convert it where PyTorch is installed: {command}"
        )
    if path.suffix not in SUFFIXES:
        raise one_of("suffix of the weights file", path.suffix, SUFFIXES)


def _read_npz(path: Path) -> State:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _select(state: State, part: str) -> State:
    for prefix in ("ema.", "ae."):
        if not any(name.startswith(prefix) for name in state):
            continue
        if prefix == "ae." and part != "ae":
            prefix = f"{part}."
            if not any(name.startswith(prefix) for name in state):
                parts = sorted({name.split(".")[0] for name in state})
                raise one_of("part", part, parts)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state
