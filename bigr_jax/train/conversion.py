"""What `bigr convert` does: published files into a work directory, and out of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from bigr_jax.data.absent import open_or_describe
from bigr_jax.errors import UserError
from bigr_jax.interop import files, stages
from bigr_jax.train.run import Run, opened
from bigr_jax.train.state import zeros_like_spec


def check(config: ConfigDict | None, workdir: str, given: Mapping[str, str]) -> None:
    """Raises UserError where a file {stage: path} is not of its stage; writes nothing."""
    run = _run(config, workdir)
    for name, path in given.items():
        stages.check(_parts(run, name), path)


def take(config: ConfigDict | None, workdir: str, given: Mapping[str, str]) -> bool:
    """Writes the weights of files {stage: path} as finished stages of a work directory, and returns
    whether images can be drawn with one of them.

    config  None: that of the work directory
    Raises UserError where a file is not of its stage, naming tensors that do not fit, and
    where a stage has been trained there.
    """
    run = _run(config, workdir)
    for name, path in given.items():
        stages.check(_parts(run, name), path)
        if run.step_of(name):
            raise UserError(f"stage {name!r} of {workdir} is trained; give another --workdir")
    run.write_description()
    for name, path in given.items():
        print(f"{name}: reading {path}", file=sys.stderr)
        parts = _parts(run, name)
        variables, unused = stages.read(parts, path, _untrained(run, name, len(parts) > 1))
        run.adopt(name, variables)
        files.write(_unused(run, name), unused)
    return any(run.methods[name].sample is not None for name in given)


def give(workdir: str, wanted: Mapping[str, str]) -> None:
    """Writes finished stages of a work directory as published files {stage: path}.

    What was read by `take` is written back bit for bit.
    """
    run = opened(workdir)
    for name, path in wanted.items():
        print(f"{name}: writing {path}", file=sys.stderr)
        parts = _parts(run, name)
        variables = jax.tree.map(np.asarray, run.variables(name))
        unused = files.read(_unused(run, name)) if os.path.exists(_unused(run, name)) else {}
        files.write(path, stages.state(parts, variables, unused))


def _run(config: ConfigDict | None, workdir: str) -> Run:
    if config is None:
        return opened(workdir)
    sources = {split: open_or_describe(config.data, split) for split in ("train", "test")}
    return Run(config, workdir, sources=sources, training=False)


def _parts(run: Run, name: str) -> Any:
    return stages.parts(name, run.methods[run.stage_names(name)[0]])


def _untrained(run: Run, name: str, several: bool) -> Any:
    """Returns the first variables of a stage on the host; of one network, only their shapes."""
    abstract = run.plan(name).abstract.variables
    if not several:
        return jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), abstract
        )
    method, key = run.methods[name], jax.random.key(run.config.seed)
    batch = zeros_like_spec(run.batch_spec(name))
    made = jax.jit(lambda key: nn.meta.unbox(method.init(key, batch, {})))(key)
    return jax.tree.map(np.asarray, made)


def _unused(run: Run, name: str) -> str:
    return os.path.join(run.workdir, name, "unused.npz")
