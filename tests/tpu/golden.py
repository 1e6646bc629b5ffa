"""What the TPU compiler makes of a stage, as numbers on record, and what has moved since.

The numbers are those of one compiler: jax and libtpu as in requirements/min.txt. After a change
that is meant, BIGR_REGENERATE=1 python -m pytest tests/tpu writes them anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bigr_jax import config as configs
from bigr_jax.data.absent import open_or_describe
from bigr_jax.losses.perceptual import stand_in
from bigr_jax.train import plan_report, planning, topologies
from bigr_jax.train.run import Run

HERE = Path(__file__).resolve().parent
PINNED = HERE.parents[1] / "requirements" / "min.txt"
DRIFT = 0.05
# Bytes below which a class is not worth a failure.
SMALL = 4096


class Case(NamedTuple):
    """A stage's program on a slice; what: "step" or "sampler"."""

    spec: str
    topology: str
    mesh: Mapping[str, int]
    stage: str
    what: str = "step"

    @property
    def path(self) -> Path:
        """Where its numbers are on record."""
        words = (self.spec, self.topology, self.stage, self.what)
        return HERE / ("-".join(words).replace(":", "-") + ".json")


def make(spec: str, topology: str, mesh: Mapping[str, int], stage: str | None = None) -> Run:
    """Returns the run of a config on a slice, for `observed`."""
    config = configs.load(spec, {f"mesh.{axis}": str(size) for axis, size in mesh.items()})
    sources = {split: open_or_describe(config.data, split) for split in ("train", "test")}
    devices = topologies.tpu_slice(topology)
    with stand_in():
        return Run(config, os.devnull, sources=sources, devices=devices, stage=stage)


def observed(run: Run, case: Case) -> dict[str, Any]:
    """Returns the numbers of a case."""
    with stand_in():
        if case.what == "step":
            found = planning.plan_step(run, case.stage)
        else:
            found = planning.plan_sampler(run, case.stage, planning.drawn_at_once(run))
    kinds = plan_report.by_kind(found.collectives)
    return {
        "mesh": dict(case.mesh),
        "fits": found.fits,
        "total": found.total,
        "memory": dict(found.memory),
        "operations": found.operations,
        "moved": {kind: round(entry["moved"]) for kind, entry in kinds.items()},
    }


def check(run: Run, case: Case) -> dict[str, Any]:
    """Compares a case with its record, or writes the record anew; returns its numbers."""
    found = observed(run, case)
    if os.environ.get("BIGR_REGENERATE") == "1":
        case.path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    assert case.path.exists(), f"{case.path} is missing; BIGR_REGENERATE=1 writes it"
    wanted = json.loads(case.path.read_text("utf-8"))
    assert found["fits"] is wanted["fits"] is True
    if is_pinned():
        assert found["operations"] == wanted["operations"]
        moved = drifted(found, wanted)
        assert not moved, f"{case.path.name}: {'; '.join(moved)}"
    else:
        assert bool(found["moved"]) == bool(wanted["moved"])
    return found


def drifted(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns a line for every number that is more than DRIFT from the one on record."""
    lines = []
    for section in ("memory", "moved"):
        for name in found[section] | wanted[section]:
            now, before = found[section].get(name, 0), wanted[section].get(name, 0)
            if abs(now - before) > max(DRIFT * before, SMALL):
                lines.append(f"{section} {name} was {before:,} bytes, is {now:,}")
    return lines


def is_pinned() -> bool:
    """Whether jax and libtpu are those of the records."""
    text = PINNED.read_text("utf-8")
    pinned = {
        name: re.search(rf"^{name}==(\S+)$", text, re.MULTILINE) for name in ("jax", "libtpu")
    }
    return all(found and metadata.version(name) == found[1] for name, found in pinned.items())
