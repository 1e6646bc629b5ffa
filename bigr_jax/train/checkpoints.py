"""Checkpoints that are whole, verified and exact; the only module that knows orbax.

A step is written asynchronously into a temporary directory. When all its files are there, and
before orbax gives the directory its name, the manifest is added: the renaming commits both, so that
a kill at any instant leaves a step either complete with its manifest or not there at all.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from bigr_jax.errors import UserError
from bigr_jax.train import manifest

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage in one directory, the `keep` newest and the best one.

    directory  local path or URL that orbax understands; made at the first save
    keep       how many of the newest steps stay
    best       name of the metric whose best step stays as well, "-" before it: lower is better
    every      steps between saves; others are passed over unless forced

    Reading changes nothing on disk, so that a finished or a running work directory can be looked at
    by another process. The first save removes what killed saves left, and each save the steps that
    it makes obsolete: damaged ones, and those of a later step that training has gone back behind.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 2,
        best: str | None = None,
        every: int = 1,
    ) -> None:
        if keep < 1:
            raise UserError(f"keep={keep} leaves no checkpoint to go on from; legal: 1 or more")
        _silence_orbax()
        is_url = "://" in os.fspath(directory)
        self._directory = epath.Path(directory if is_url else os.path.abspath(directory))
        self._keep, self._every = keep, max(every, 1)
        self._best = (best or "").removeprefix("-")
        self._sign = -1.0 if best and best.startswith("-") else 1.0
        self._manager: ocp.CheckpointManager | None = None
        self._saving: tuple[int, Mapping[str, manifest.Leaf]] | None = None
        self._failure: str | None = None
        self._last: int | None = None
        self._damaged: set[int] = set()
        self._scores: dict[int, float] = {}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def all_steps(self) -> list[int]:
        """Returns the finished steps in rising order; those without a manifest are not finished."""
        return [step for step in self._directories() if (self._path(step) / manifest.NAME).exists()]

    def latest(self) -> int | None:
        """Returns the newest finished step, or None."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the best metric among those that have it; else the newest one."""
        best = self._best_of(self.all_steps())
        return self.latest() if best is None else best

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts to save a step and returns; False where the step is not due or already saved.

        state    tree of arrays; on return it may be donated
        meta     what JSON can hold: the position in the data, say
        metrics  measured at this step, among them perhaps the one that `best` names

        A save that fails (a full disk) costs that step only: the next call warns of it and goes on,
        and `wait` and `close` raise UserError if it was the last one. Saving a step older than
        some on disk removes those: they belong to a course that was given up.
        """
        if step == self._last or (step % self._every and not force):
            return False
        record = json.loads(json.dumps({"meta": dict(meta), "metrics": _finite(metrics or {})}))
        self.settle()
        if self._failure:
            logger.warning("%s; training goes on", self._failure)
        arrays = jax.tree.map(_array, state)
        self._saving, self._last, self._failure = (step, manifest.leaves(arrays)), step, None
        self._scores[step] = record["metrics"].get(self._best, math.nan)
        try:
            manager = self._opened()
            for old in manager.all_steps():
                if old >= step or old in self._damaged:
                    manager.delete(old)
            self._damaged.clear()
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(record)
            )
            manager.save(step, args=items, force=True)
        except OSError as error:
            self._fail(error)
        return True

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the state and meta of a step, or of the newest step that is not damaged.

        abstract_state  tree of ShapeDtypeStruct with the shardings to restore to, on any mesh

        Raises UserError where the arrays differ from those saved in path, shape or dtype, where
        `step` is missing or damaged, and where no step is good.
        """
        self.settle()
        found = self._choose(step)
        path = self._path(found)
        wanted = manifest.leaves(abstract_state)
        if wrong := manifest.differences(manifest.read(path).leaves, wanted):
            raise UserError(f"checkpoint {path} holds another state: {wrong}")
        with ocp.StandardCheckpointer() as reader:
            state = reader.restore(path / "state", jax.tree.map(_placed, abstract_state))
        self._last = found
        return state, self._record(found)["meta"]

    def meta(self) -> dict[str, Any]:
        """Returns the meta of the newest step, {} without one."""
        step = self.latest()
        return {} if step is None else self._record(step)["meta"]

    def settle(self) -> None:
        """Returns when the last save is on disk or has failed, which `save` and `wait` tell."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._fail(error)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises UserError if it failed."""
        self.settle()
        if self._failure:
            failure, self._failure = self._failure, None
            raise UserError(failure)

    def close(self) -> None:
        """Waits for the last save and ends orbax's threads; raises UserError if the save failed."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def _opened(self) -> ocp.CheckpointManager:
        if self._manager is None:
            steps = self._directories()
            self._damaged |= set(steps) - set(self.all_steps())
            options = ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                lightweight_initialize=True,
                preservation_policy=_Preserve(self._preserved),
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._add_manifest
                ),
            )
            # Trained numbers compress by a tenth, and compressing them takes six times the work of
            # all else in a save.
            handlers = {
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "meta": ocp.JsonCheckpointHandler(),
            }
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, item_handlers=handlers
            )
        return self._manager

    def _add_manifest(self) -> None:
        # Orbax calls this on its thread with all items of the step complete and the step not yet
        # renamed; where a file system cannot rename, the directory has its final name already.
        assert self._saving is not None
        step, arrays = self._saving
        if jax.process_index() == 0:
            (written,) = (
                path for path in self._directory.iterdir() if path.name.split(".")[0] == str(step)
            )
            manifest.write(written, arrays, step)

    def _preserved(self, steps: list[int]) -> set[int]:
        kept = set(steps[-self._keep :])
        best = self._best_of(steps)
        return kept if best is None else kept | {best}

    def _best_of(self, steps: list[int]) -> int | None:
        if not self._best:
            return None
        scores = {step: self._sign * self._score(step) for step in steps}
        return max(
            (step for step, score in scores.items() if math.isfinite(score)),
            key=lambda step: (scores[step], step),
            default=None,
        )

    def _score(self, step: int) -> float:
        if step not in self._scores:
            self._scores[step] = self._record(step)["metrics"].get(self._best, math.nan)
        return self._scores[step]

    def _record(self, step: int) -> dict[str, Any]:
        try:
            return json.loads((self._path(step) / "meta" / "metadata").read_text())
        except (OSError, ValueError):
            return {"meta": {}, "metrics": {}}

    def _choose(self, step: int | None) -> int:
        candidates = [s for s in reversed(self._directories()) if step in (None, s)]
        chosen = -1
        if jax.process_index() == 0:
            chosen = next((s for s in candidates if self._is_good(s)), -1)
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen < 0:
            which = "" if step is None else f" of step {step}"
            steps = ", ".join(map(str, self.all_steps())) or "none"
            mend = f". Delete the damaged ones of {self._directory}, and train again: it goes on"
            raise UserError(
                f"{self._directory} has no good checkpoint{which}; finished steps: {steps}"
                f"{mend if candidates else ''}"
            )
        if step is None:
            self._damaged |= {s for s in candidates if s > chosen}
        return chosen

    def _is_good(self, step: int) -> bool:
        try:
            manifest.verify(self._path(step), step)
        except manifest.Damaged as problem:
            logger.warning(
                "checkpoint %s is damaged and passed over: %s", self._path(step), problem
            )
            return False
        return True

    def _fail(self, error: Exception) -> None:
        assert self._saving is not None
        where = self._path(self._saving[0])
        self._failure = f"checkpoint {where} could not be written: {error}"
        # A manager repeats the error of a failed save at every call; a new one starts clean.
        self._manager = self._last = None

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _directories(self) -> list[int]:
        if not self._directory.exists():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())


class _Preserve:
    """Orbax's interface to the rule which steps stay."""

    def __init__(self, kept: Callable[[list[int]], set[int]]) -> None:
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self._kept(sorted(info.step for info in checkpoints))
        return [info.step in kept for info in checkpoints]


def _array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError("a typed key in the state cannot be saved; derive keys from the step")
    # Orbax saves NumPy scalars but does not restore them.
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    where = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _silence_orbax() -> None:
    # What a user must know of a save or a restore is said by this module, in one line.
    logging.getLogger("absl").addFilter(_is_not_orbax)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
