"""Files of named tensors: npz and safetensors."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  NumPy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from bigr_jax.errors import UserError, nearest, one_of
from bigr_jax.files import whole

State = dict[str, np.ndarray]
_Reader = Callable[[Path], State]

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
    that nests the averaged weights under "ema." yields those, one whose trainer put "model." before
    all names the names. Any other file is returned as it is.

    Returns {published name: array}, dtypes as stored. Raises UserError for a missing file, for a
    PyTorch pickle (with the command that converts it), for another suffix and for a broken file.
    """
    return _select(_opened(path, _read_npz, load_file), part)


def stand_ins(path: str | Path, part: str = "ae") -> State:
    """Returns what `read` does, with float32 zeros that take no memory in place of the values; only
    names and shapes are read.
    """
    return _select(_opened(path, _heads_npz, _heads_safetensors), part)


def parts(path: str | Path) -> set[str]:
    """Returns the first names of the tensors in a file."""
    return {name.split(".")[0] for name in _opened(path, _heads_npz, _heads_safetensors)}


def write(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes {name: array} to an .npz or .safetensors file; raises UserError for another suffix."""
    path = Path(path)
    _check_suffix(path)
    objects = [name for name, value in state.items() if np.asarray(value).dtype.hasobject]
    if objects:
        raise ValueError(f"arrays of Python objects cannot be written: {objects}")
    arrays: dict[str, Any] = {name: np.asarray(value, order="C") for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        if path.suffix == ".npz":
            with open(part, "wb") as stream:
                np.savez(stream, **arrays)
        else:
            save_file(arrays, part)


def _check_suffix(path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".th", ".bin", ".ckpt"):
        command = shlex.join(["python", "-c", CONVERT, str(path), str(path.with_suffix(".npz"))])
        raise UserError(
            f"weights file {str(path)!r} is a PyTorch pickle, which is never opened here; "
            f"convert it where PyTorch is installed: {command}"
        )
    if path.suffix not in SUFFIXES:
        raise one_of("suffix of the weights file", path.suffix, SUFFIXES)


def _opened(path: str | Path, npz: _Reader, safetensors: _Reader) -> State:
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        beside = (near.name for suffix in SUFFIXES for near in path.parent.glob(f"*{suffix}"))
        hint = nearest(path.name, beside) or "; give the path of a file that is here"
        raise UserError(f"weights file {str(path)!r} does not exist{hint}")
    try:
        return dict((npz if path.suffix == ".npz" else safetensors)(path))
    except _BROKEN as error:
        raise UserError(
            f"weights file {str(path)!r} cannot be read: {error}; is it whole? "
            "Its size tells, or fetch it again"
        ) from error


def _heads_npz(path: Path) -> State:
    found: State = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                old = np.lib.format.read_magic(member) == (1, 0)
                form = np.lib.format
                head = form.read_array_header_1_0 if old else form.read_array_header_2_0
                found[name.removesuffix(".npy")] = _zeros(head(member)[0])
    return found


def _heads_safetensors(path: Path) -> State:
    with safe_open(path, framework="numpy") as archive:
        names = archive.keys()
        return {name: _zeros(archive.get_slice(name).get_shape()) for name in names}


def _zeros(shape: Sequence[int]) -> np.ndarray:
    return np.broadcast_to(np.float32(0), tuple(shape))


def _read_npz(path: Path) -> State:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _select(state: State, part: str) -> State:
    for prefix in ("ema.", "model.", "ae."):
        if not any(name.startswith(prefix) for name in state):
            continue
        if prefix == "ae." and part != "ae":
            prefix = f"{part}."
            if not any(name.startswith(prefix) for name in state):
                parts = sorted({name.split(".")[0] for name in state})
                raise one_of("part", part, parts)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state
