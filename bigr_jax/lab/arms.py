"""Where the arms of a study are trained: a directory's name says what is learnt there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax.train.checks import FREE

LONGEST = 100
# The lab reads them itself: more seeds or arms change nothing in what one of them measures.
COUNTED = ("study.seeds", "study.arms")


def changed(config: ConfigDict, changes: Mapping[str, str], seed: int) -> ConfigDict:
    """Returns `config` with the changes of an arm and a seed.

    Raises UserError as `config.override` does; ValueError for a change of the seed.
    """
    if "seed" in changes:
        raise ValueError("an arm's seed is an argument of its own, not one of its changes")
    return configs.override(config, {**changes, "seed": str(seed)})


def directory(base: ConfigDict, config: ConfigDict, stage: str | None) -> str:
    """Returns where, within the work directory, an arm is trained: its stage, what it learns
    otherwise than `base`, and its seed.

    Settings that training does not see are no part of it, so that arms that differ in them alone
    share a training.
    """
    learnt = [
        f"{change.key}={change.after}"
        for change in configs.diff(base, config)
        if change.key != "seed" and not change.key.startswith(FREE)
    ]
    text = ",".join(sorted(learnt)).replace(" ", "_")
    name = re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII)
    if name != text or len(name) > LONGEST:
        # What was left out still tells two directories apart.
        name = f"{name[:LONGEST]}-{zlib.crc32(text.encode()):08x}"
    return os.path.join(stage or "", f"{name or 'base'}-seed{config.seed}")


def fingerprint(config: ConfigDict, stage: str | None, source: str) -> str:
    """Returns a hash of all that a measurement depends on: settings, stage, and the experiment's
    text.
    """
    settings = {key: repr(value) for key, value in configs.flat(config).items()}
    kept = {key: text for key, text in settings.items() if key not in COUNTED}
    spelled = json.dumps([kept, stage, source], sort_keys=True)
    return hashlib.sha256(spelled.encode()).hexdigest()[:16]
