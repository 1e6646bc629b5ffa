"""The linear probe of MAE on the features of a trained stage, every layer at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bigr_jax import files
from bigr_jax.data import Source
from bigr_jax.data.source import with_progress
from bigr_jax.errors import UserError
from bigr_jax.metrics.probe_mae import Protocol, accuracies, check, fit
from bigr_jax.train.inception_reader import compiled, place, round_up
from bigr_jax.train.loop import scope
from bigr_jax.train.run import Run, opened
from bigr_jax.train.sharding import replicated

# Examples that are read at once, and bytes of features above which they are not kept but read again
# in every epoch.
READ, KEPT = 256, 16 << 30


def probe_run(workdir: str, protocol: Protocol, stage: str | None = None) -> dict[str, Any]:
    """Trains a probe per layer on the training split, measures it on the test split, and writes the
    accuracies to results.json under "probe_mae".

    stage  None: the last one with features to probe
    Features are of images as they are, without augmentation, unlike MAE's. Raises UserError where
    the stage has none or is not trained.
    """
    run = opened(workdir, data=True)
    name = probed_stage(run, stage)
    protocol = check(protocol, len(run.sources["train"]))
    programs: dict[str, Any] = {}
    train, test = (
        _Features(run, name, run.sources[split], programs) for split in ("train", "test")
    )
    train.read_all("training split")
    classes = run.config.data.num_classes

    def shown(epochs: range) -> Iterator[int]:
        what = f"training the probes for {protocol.epochs} epochs, {protocol.batch} examples a step"
        return with_progress(epochs, len(epochs), what)

    probe = fit(train, len(run.sources["train"]), classes, protocol, run.config.seed, shown)
    found = accuracies(probe, test.in_order("reading the test split"), test.size)
    layers = {
        f"layer{index}": {"top1": float(top1), "top5": float(top5)}
        for index, (top1, top5) in enumerate(found)
    }
    entry = {"stage": name, "protocol": {**protocol._asdict(), "augmentation": "none"}, **layers}
    results = run.results()
    results["probe_mae"] = entry
    if jax.process_index() == 0:
        files.write_json(os.path.join(workdir, "results.json"), results)
    return entry


def probed_stage(run: Run, stage: str | None = None) -> str:
    """Returns the last stage with features to probe, or the one that is named.

    Raises UserError where there is none. Such a stage's `Method.model` has `codes(batch, given)`
    and a `net` with `pooled(codes)`.
    """
    names = run.stage_names(stage)
    for name in reversed(names):
        model = run.methods[name].model
        if hasattr(model, "codes") and hasattr(getattr(model, "net", None), "pooled"):
            return name
    what = f"stage {stage!r} has no" if stage else "no stage has"
    raise UserError(f"{run.config.slug}: {what} features to probe, a network with `pooled`")


class _Features:
    """The features of a source's examples, read in groups of one size, kept where they fit.

    programs  compiled ones by the stage's name, shared by sources of one kind
    """

    def __init__(self, run: Run, name: str, source: Source, programs: dict[str, Any]) -> None:
        self.size = round_up(READ, run.mesh)
        self._run, self._name, self._source = run, name, source
        self._programs = programs
        self._all: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns features [layers, B, D] and labels [B] of examples."""
        if self._all is not None:
            return self._all[0][:, rows], self._all[1][rows]
        parts = [self._read(rows[i : i + self.size]) for i in range(0, len(rows), self.size)]
        features, labels = zip(*parts, strict=True)
        return np.concatenate(features, axis=1), np.concatenate(labels)

    def in_order(self, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the features and labels of all examples, `size` of them at a time."""
        count = len(self._source)
        starts = range(0, count, self.size)
        for start in with_progress(starts, len(starts), what):
            yield self._read(np.arange(start, min(start + self.size, count)))

    def read_all(self, what: str) -> None:
        """Keeps all features where they fit in memory."""
        count = len(self._source)
        features, _ = self._read(np.arange(min(self.size, count)))
        layers, _, size = features.shape
        if 4 * layers * size * count > KEPT:
            return
        kept = np.empty((layers, count, size), np.float32)
        labels, done = np.empty(count, np.int32), 0
        for part, own in self.in_order(f"reading the {what}"):
            kept[:, done : done + len(own)], labels[done : done + len(own)] = part, own
            done += len(own)
        self._all = kept, labels

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.pad(rows, (0, self.size - len(rows)), mode="edge")
        own = self._source.gather(padded)
        batch = {name: place(column, self._run.mesh) for name, column in own.items()}
        given, variables = self._run.given(self._name), self._run.variables(self._name)
        with scope(self._run.mesh):
            if self._name not in self._programs:
                self._programs[self._name] = self._compiled(variables, given, batch)
            found = np.asarray(self._programs[self._name](variables, given, batch))
        return found[:, : len(rows)], own["label"][: len(rows)]

    def _compiled(self, variables: Any, given: Any, batch: Any) -> Any:
        model = self._run.methods[self._name].model

        def pooled(variables: Any, given: Any, batch: Any) -> jax.Array:
            found = model.net.apply(variables, model.codes(batch, given), method="pooled")
            return found.swapaxes(0, 1)

        run = jax.jit(pooled, out_shardings=replicated(self._run.mesh))
        return compiled("the features", run.lower, variables, given, batch)
