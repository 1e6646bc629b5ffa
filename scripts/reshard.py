"""Saves a stage on each of several layouts of simulated devices, and goes on on each.

    python scripts/reshard.py [--config=bigr:smoke] [--stage=generator] [--layout=data=2,fsdp=4]
                              [--steps=2] [--json=FILE]

A row per layout on which a checkpoint was made, after a few steps there; a column per layout on
which it was restored: how many of its bytes differ, and the relative difference of the loss of the
next step from that on the layout where it was made. The exit status is 1 where a byte differs or a
loss by more than 1e-6.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

# Before JAX is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# It compiles much and runs little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax
import numpy as np

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.api import TrainState
from bigr_jax.data import train_batches
from bigr_jax.train import loop, sharding
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.run import Run

LAYOUTS = (
    "data=1",
    "data=8",
    "fsdp=8",
    "data=2,fsdp=4",
    "fsdp=2,model=4",
    "data=2,model=2,seq=2",
)
TOLERANCE = 1e-6


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="bigr:smoke", help="default bigr:smoke")
    parser.add_argument("--stage", default="generator", help="default generator")
    parser.add_argument("--layout", action="append", help="only these; may be repeated")
    parser.add_argument("--steps", type=int, default=2, help="before each save, default 2")
    parser.add_argument("--json", help="file for the pairs")
    given = parser.parse_args(argv)
    names = given.layout or LAYOUTS
    with tempfile.TemporaryDirectory() as folder:
        layouts = [Layout(given.config, given.stage, name, folder) for name in names]
        pairs = [pair for made in layouts for pair in moved(made, layouts, given.steps, folder)]
    if given.json:
        files.write_json(given.json, pairs)
    print("| made on, restored on | " + " | ".join(names) + " |")
    print("| --- " * (len(names) + 1) + "|")
    for name in names:
        mine = [pair for pair in pairs if pair["made"] == name]
        cells = [f"{pair['bytes']} bytes, {pair['loss']:.1e}" for pair in mine]
        print("| " + " | ".join([name, *cells]) + " |")
    wrong = [p for p in pairs if p["bytes"] or p["loss"] > TOLERANCE]
    print(f"\n{len(pairs) - len(wrong)} of {len(pairs)} pairs: the same bytes, the same loss")
    return int(bool(wrong))


def moved(made: Layout, layouts: Sequence[Layout], steps: int, folder: str) -> list[dict[str, Any]]:
    """Returns a row for each layout on which what was saved on `made` is restored."""
    state, _ = made.trained(None, 0, steps)
    saved = leaves(state)
    with Checkpoints(f"{folder}/{made.name}") as checkpoints:
        checkpoints.save(steps, state, {})
        checkpoints.wait()
        expected, rows = made.next_loss(state, steps), []
        for other in layouts:
            found, _ = checkpoints.restore(other.plan.abstract)
            placed = jax.tree.map(lambda leaf: leaf.sharding, found)
            assert placed == jax.tree.map(lambda leaf: leaf.sharding, other.plan.abstract)
            differing = sum(
                int((one != two).sum()) for one, two in zip(saved, leaves(found), strict=True)
            )
            loss = abs(other.next_loss(found, steps) / expected - 1)
            rows += [{"made": made.name, "restored": other.name, "bytes": differing, "loss": loss}]
    return rows


def leaves(state: TrainState) -> list[np.ndarray]:
    """Returns the bytes of every leaf."""
    return [np.frombuffer(np.asarray(leaf).tobytes(), np.uint8) for leaf in jax.tree.leaves(state)]


class Layout:
    """A stage on one layout of devices, its step compiled once."""

    def __init__(self, ref: str, stage: str, name: str, folder: str) -> None:
        sizes = {axis: size for axis, _, size in (part.partition("=") for part in name.split(","))}
        changes = {f"mesh.{axis}": size for axis, size in {"data": "1", **sizes}.items()}
        devices = jax.devices()[: math.prod(map(int, sizes.values()))]
        config = configs.load(ref, changes)
        self.name = name
        self._run = Run(config, f"{folder}/run", devices=devices)
        self.plan = self._run.plan(stage)
        # The same bits on every layout, see `train.state`.
        self._given = {
            need: self._run.plan(need).create({}).variables for need in self.plan.method.needs
        }
        self._root = sharding.root_key(self.plan.seed, self._run.mesh)
        self._program: Any = None

    def trained(self, state: TrainState | None, start: int, steps: int) -> tuple[TrainState, float]:
        """Returns the state after some steps, and the loss of the last."""
        mesh, size = self._run.mesh, self.plan.batch_size
        host = train_batches(self._run.sources["train"], size, self.plan.seed, start)
        batches = loop.device_batches(host, mesh)
        with loop.scope(mesh), contextlib.closing(batches):
            state = self.plan.create(self._given) if state is None else state
            for _ in range(steps):
                batch = next(batches)
                if self._program is None:
                    how = (self.plan, state, batch, self._root, self._given)
                    self._program = loop.compile_step(*how).step
                state, metrics = self._program(state, batch, self._root, self._given)
        return state, float(metrics["loss"])

    def next_loss(self, state: TrainState, start: int) -> float:
        """Returns the loss of the step after `start`; the state is used up."""
        return self.trained(state, start, 1)[1]


if __name__ == "__main__":
    sys.exit(main())
