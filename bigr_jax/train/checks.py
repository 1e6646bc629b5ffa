"""What is looked at before a run begins: the work directory's config, and sizes that must fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax.api import Method
from bigr_jax.errors import UserError

# What may differ between two runs in one work directory without changing what is learnt.
FREE = ("mesh.", "sharding", "sample.", "report.", "study.", "logging.")
_LISTED = 5


def refuse_other_config(workdir: str, config: ConfigDict) -> None:
    """Raises UserError when a work directory was made with another config, naming the keys."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        return
    if changed := _changes(configs.load_json(path), config):
        changed[_LISTED:] = [f"and {len(changed) - _LISTED} more"] * (len(changed) > _LISTED)
        raise UserError(
            f"{workdir} was made with another config: {'; '.join(changed)}. "
            "Give another --workdir, or the same config to go on"
        )


def overridden(saved: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Returns the settings that a run is used with, as `config.override` does.

    Raises UserError where they are not those of its training.
    """
    config = configs.override(saved, overrides)
    if changed := _changes(saved, config):
        free = ", ".join(f"{key}*" if key.endswith(".") else key for key in FREE)
        raise UserError(
            f"config.{changed[0]}: what is trained stays as it is; legal: {free}, or train anew in "
            "another --workdir"
        )
    return config


def _changes(before: ConfigDict, after: ConfigDict) -> list[str]:
    return [
        f"{key} was {old!r}, now {new!r}"
        for key, old, new in configs.diff(before, after)
        if not key.startswith(FREE) and not key.endswith(".nonfinite")
    ]


def check_sizes(key: str, section: Any, method: Method, rows: int, every: int = 1) -> None:
    """Raises UserError where the sizes of a stage's section are not legal.

    key   of the section, e.g. "train.generator"
    rows  data x fsdp of the mesh; 1 where the stage is not trained here and has batches of no size
    every of how many rows one is added that is held out, see `data.division`
    """
    for name in ("batch_size", "eval_batch_size", "accumulate", "repeat", "keep"):
        if section[name] < 1:
            raise UserError(f"{key}.{name}={section[name]} must be 1 or more")
    if method.step is not None and section.accumulate > 1:
        raise UserError(
            f"{key}.accumulate={section.accumulate}: this stage takes steps of its own, which "
            "see the whole batch; legal: 1"
        )
    unit = rows * section.accumulate * every
    if section.batch_size % unit:
        times = f" times accumulate = {section.accumulate}" * (section.accumulate > 1)
        times += f" times data.held_every = {every}" * (every > 1)
        raise UserError(
            f"{key}.batch_size={section.batch_size} must be a multiple of data x fsdp = "
            f"{rows}{times}, e.g. {-(-section.batch_size // unit) * unit}"
        )
