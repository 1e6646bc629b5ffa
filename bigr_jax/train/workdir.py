"""The small files of a work directory that say what it is: its config, its data, its base."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.data import Source, open_source
from bigr_jax.data.described import Described, describe
from bigr_jax.errors import UserError


class Base(NamedTuple):
    """Another work directory, and the one stage that is trained on those found there."""

    workdir: str
    stage: str


def saved(workdir: str) -> ConfigDict:
    """Returns the config of a work directory. Raises UserError where it is none."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise UserError(
            f"--workdir={workdir} is no work directory of `bigr train`: {path} is missing"
        )
    return configs.load_json(path)


def mesh_of(config: ConfigDict) -> dict[str, str]:
    """Returns the overrides that place another config's run on the same mesh."""
    return {f"mesh.{axis}": str(size) for axis, size in config.mesh.items()}


def write_base(workdir: str, base: Base) -> None:
    """Writes base.json; the base is named from here, so that both can be moved together."""
    where = os.path.relpath(base.workdir, workdir)
    files.write_json(os.path.join(workdir, "base.json"), {"workdir": where, "stage": base.stage})


def read_base(workdir: str) -> Base | None:
    """Returns the base of a work directory, or None."""
    found = files.read_json(os.path.join(workdir, "base.json"))
    if found is None:
        return None
    return Base(os.path.normpath(os.path.join(workdir, found["workdir"])), found["stage"])


def write_data(workdir: str, sources: Mapping[str, Source]) -> None:
    """Writes data.json, which is all that using the model needs of its data."""
    record = {split: describe(source) for split, source in sources.items()}
    files.write_json(os.path.join(workdir, "data.json"), record)


def read_data(workdir: str, section: Any) -> dict[str, Source] | None:
    """Returns the sources that data.json describes, opened only when they are read, or None.

    section  of the config, that names the data
    """
    found = files.read_json(os.path.join(workdir, "data.json"))
    if found is None:
        return None
    return {
        split: Described(record, functools.partial(open_source, section, split))
        for split, record in found.items()
    }
