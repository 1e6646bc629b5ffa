"""Published files <-> the variables of a stage, which may hold several networks.

A stage's networks are the `parts` of its method's `model`, see `bigr_jax.api.Part`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bigr_jax.api import Method, Part
from bigr_jax.errors import UserError
from bigr_jax.interop import files, torch
from bigr_jax.interop.layout import UNUSED

Flat = dict[tuple[str, ...], Any]


def parts(name: str, method: Method) -> Sequence[Part]:
    """Returns the networks of a stage. Raises UserError where none has a published layout."""
    found: Sequence[Part] = getattr(method.model, "parts", ())
    if not found:
        raise UserError(f"stage {name!r} has no published layout")
    return found


def check(found: Sequence[Part], path: str | Path) -> None:
    """Raises UserError where a file is not of these networks, naming tensors that do not fit; no
    values are read.
    """
    for part in _held(found, path):
        try:
            torch.check(part.module, files.stand_ins(path, torch.part(part.module)))
        except UserError as error:
            raise UserError(
                f"{path}: {error}. A --config of the size that they are of takes them"
            ) from None


def read(
    found: Sequence[Part], path: str | Path, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], files.State]:
    """Returns the variables of a stage from a file, and the tensors of it that nothing reads.

    variables  of the stage, on the host; those of a network that is not in the file stay

    Values are stored in the dtypes of `variables`. Raises UserError as `check` does.
    """
    flat: Flat = flatten_dict(variables)
    unused: files.State = {}
    for part in _held(found, path):
        name = torch.part(part.module)
        given = torch.from_torch(part.module, files.read(path, name))
        for keys, value in flatten_dict(given.pop(UNUSED, {})).items():
            unused[f"{name}/{'.'.join(keys)}"] = value
        for (collection, *keys), value in flatten_dict(given).items():
            place = (collection, *part.places[collection], *keys)
            flat[place] = np.asarray(value, flat[place].dtype)
    return unflatten_dict(flat), unused


def state(
    found: Sequence[Part], variables: Mapping[str, Any], unused: Mapping[str, np.ndarray]
) -> files.State:
    """Returns the published tensors of a stage; the reverse of `read`.

    A network's tensors have its first name where the file holds several.
    """
    flat: Flat = flatten_dict(variables)
    tensors: files.State = {}
    for part in found:
        name = torch.part(part.module)
        own: Flat = {}
        for collection, place in part.places.items():
            depth = 1 + len(place)
            for keys, value in flat.items():
                if keys[:depth] == (collection, *place):
                    own[(collection, *keys[depth:])] = value
        for key, value in unused.items():
            network, _, tensor = key.partition("/")
            if network == name:
                own[(UNUSED, *tensor.split("."))] = value
        given = torch.to_torch(part.module, unflatten_dict(own))
        prefix = f"{name}." if len(found) > 1 else ""
        tensors |= {prefix + key: value for key, value in given.items()}
    return tensors


def _held(found: Sequence[Part], path: str | Path) -> list[Part]:
    # A file without first names is of the first network.
    names = files.parts(path)
    return [part for i, part in enumerate(found) if i == 0 or torch.part(part.module) in names]
