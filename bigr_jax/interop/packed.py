"""Frozen ternary networks as files: of a kernel its codes, four or five to a byte, and its scales.

A file is a safetensors file (or npz) of all variables by path. In place of "params/up/kernel" it
has "params/up/kernel.trits" or "params/up/kernel.2bit", uint8, all codes in one row, and
"params/up/kernel.shape"; "params/up/kernel_scale" is beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bigr_jax.errors import UserError
from bigr_jax.interop import files
from bigr_jax.ops.ternary import FORMS, pack_ternary, unpack_ternary

_SHAPE = ".shape"


def save(path: str | Path, frozen: Mapping[str, Any], form: str = "trits") -> None:
    """Writes what `nn.ternary.freeze` gave.

    form  "trits", 1.6 bits for a weight, or "2bit"; see `ops.ternary.pack_ternary`
    Raises UserError for another form, and for another suffix than .safetensors and .npz.
    """
    state: files.State = {}
    for name, leaf in flatten_dict(dict(frozen), sep="/").items():
        leaf = np.asarray(leaf)
        if leaf.dtype != np.int8:
            state[name] = leaf
            continue
        state[f"{name}.{form}"] = np.asarray(pack_ternary(leaf.reshape(-1), form))
        state[name + _SHAPE] = np.array(leaf.shape, np.int32)
    files.write(path, state)


def load(path: str | Path) -> dict[str, Any]:
    """Returns the variables of a file that `save` wrote, for `nn.ternary.Frozen`.

    Raises UserError where the file is none, holds no packed kernel, or a kernel does not fit its
    shape.
    """
    found: dict[str, Any] = {}
    packed = 0
    state = files.read(path)
    for name, leaf in state.items():
        place, _, form = name.rpartition(".")
        if form in FORMS:
            packed += 1
            found[place] = _unpacked(path, place, leaf, state.get(place + _SHAPE), form)
        elif not name.endswith(_SHAPE):
            found[name] = leaf
    if not packed:
        raise UserError(f"weights file {str(path)!r} holds no packed kernel, as NAME.trits")
    return unflatten_dict(found, sep="/")


def _unpacked(
    path: str | Path, name: str, leaf: np.ndarray, shape: np.ndarray | None, form: str
) -> np.ndarray:
    told = f"weights file {str(path)!r}: {name}.{form}"
    if shape is None:
        raise UserError(f"{told} has no {name}{_SHAPE} beside it")
    try:
        return np.asarray(unpack_ternary(leaf, math.prod(shape.tolist()), form)).reshape(shape)
    except ValueError as error:
        raise UserError(
            f"{told} does not fit {name}{_SHAPE} {tuple(shape.tolist())}: {error}"
        ) from None
