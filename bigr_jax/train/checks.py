"""What is looked at before a run begins: the work directory's config, and sizes that must fit."""

from __future__ import annotations

import os
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
    changed = [
        f"{key} was {before!r}, now {after!r}"
        for key, before, after in configs.diff(configs.load_json(path), config)
        if not key.startswith(FREE) and not key.endswith(".nonfinite")
    ]
    if changed:
        changed[_LISTED:] = [f"and {len(changed) - _LISTED} more"] * (len(changed) > _LISTED)
        raise UserError(
            f"{workdir} was made with another config: {'; '.join(changed)}. "
            "Give another --workdir, or the same config to go on"
        )


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
    if section.batch_size % (rows * section.accumulate * every):
        times = f" times accumulate = {section.accumulate}" * (section.accumulate > 1)
        times += f" times data.held_every = {every}" * (every > 1)
        raise UserError(
            f"{key}.batch_size={section.batch_size} must be a multiple of data x fsdp = "
            f"{rows}{times}"
        )
