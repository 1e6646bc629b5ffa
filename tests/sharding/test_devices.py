"""The same run on one device and on meshes of eight: the same parameters, the same losses.

As a program, `python test_devices.py FOLDER`, this file trains on the meshes of its devices and
prints what it saw.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.errors import UserError
from bigr_jax.train.loop import fit
from bigr_jax.train.run import Run, opened
from bigr_jax.train.state import eval_variables
from bigr_jax.train.writer import Metrics

TINY = str(Path(__file__).resolve().parents[1] / "tiny.py")
STAGES = ("tokenizer", "generator")
MESHES = {"data": {}, "data+fsdp+model": {"data": "2", "fsdp": "2", "model": "2"}}
# The discriminator counts from step 10 on.
STEPS = 12


class Nowhere:
    """Stands for checkpoints; those of several devices have their own tests."""

    def latest(self) -> None:
        return None

    def save(self, *args: Any) -> None:
        pass

    def settle(self) -> None:
        pass

    def wait(self) -> None:
        pass


def observed(workdir: Path, mesh: dict[str, str]) -> dict[str, Any]:
    """Trains a few steps of bigr:smoke and returns what a test may compare.

    rows         of metrics.jsonl
    start        {stage: digest of the parameters before the first step}
    parted       {stage: how many of its parameters lie in parts}
    constraints  {stage: sharding constraints in the text of its train step}
    """
    changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    config = configs.load("bigr:smoke", {**changes, "referee.enabled": "false"})
    run, found = Run(config, str(workdir)), {"start": {}, "parted": {}, "constraints": {}}
    lower, trained = jax.stages.Traced.lower, {}
    with pytest.MonkeyPatch.context() as patch, Metrics(workdir) as metrics:
        for stage in STAGES:
            plan = run.plan(stage)
            given = {need: trained[need] for need in plan.method.needs}

            def create(given: Any, plan: Any = plan, stage: str = stage) -> Any:
                state = plan.create(given)
                params = jax.tree.leaves(state.variables["params"])
                arrays = [np.asarray(leaf).tobytes() for leaf in params]
                found["start"][stage] = hashlib.sha256(b"".join(arrays)).hexdigest()
                found["parted"][stage] = sum(not leaf.is_fully_replicated for leaf in params)
                return state

            def lowered(traced: Any, stage: str = stage) -> Any:
                made = lower(traced)
                found["constraints"][stage] = made.as_text().count("sdy.sharding_constraint")
                return made

            patch.setattr(jax.stages.Traced, "lower", lowered)
            # Not by the config: the rates of 20 steps, and with them the compiled program, stay.
            short = plan._replace(create=create, total=STEPS, log_every=1, eval_every=0)
            checkpoints: Any = Nowhere()
            state = fit(short, run.mesh, run.sources, given, checkpoints, metrics, str(workdir))
            trained[stage] = eval_variables(state, plan.optimizer)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {"rows": rows, **found}


def batch_sizes(workdir: Path) -> dict[str, Any]:
    """Returns what becomes of batches that eight devices do not divide."""
    uneven = Run(configs.load(TINY, {"train.first.eval_batch_size": "100"}), str(workdir))
    config = configs.load(TINY, {"train.first.batch_size": "12"})
    trained = workdir / "trained"
    configs.save(Run(config, str(trained), training=False).config, str(trained / "config.json"))
    used = opened(str(trained), data=True).plan("first").batch_size
    other = Run(config, str(workdir), stage="second").plan("second").batch_size
    try:
        Run(config, str(workdir))
    except UserError as error:
        sizes = {"eval": uneven.plan("first").eval_batch_size, "used": used, "other stage": other}
        return {**sizes, "train": str(error)}
    return {}


def main(folder: Path) -> None:
    """Prints {mesh: what was observed on it} and what `batch_sizes` returns."""
    found = {name: observed(folder / name, mesh) for name, mesh in MESHES.items()}
    print(json.dumps({**found, "batch_sizes": batch_sizes(folder / "tiny")}))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return observed(tmp_path_factory.mktemp("one"), {})


@pytest.fixture(scope="module")
def eight(run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = run_python([__file__, str(tmp_path_factory.mktemp("eight"))], devices=8)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_agree(one: Any, eight: Any, mesh: str) -> None:
    expected, found = one["rows"], eight[mesh]["rows"]
    assert [(r["stage"], r["step"], *r) for r in found] == [
        (r["stage"], r["step"], *r) for r in expected
    ]
    losses = [
        (row[name], other[name], row["stage"], row["step"], name)
        for row, other in zip(found, expected, strict=True)
        for name in row
        if name not in ("stage", "step")
    ]
    assert len({row[2:4] for row in losses}) == STEPS * len(STAGES)
    for value, wanted, *where in losses:
        assert value == pytest.approx(wanted, rel=1e-5, abs=1e-7), where


@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_start_as_the_same_bits(one: Any, eight: Any, mesh: str) -> None:
    assert eight[mesh]["start"] == one["start"]
    assert len(set(one["start"].values())) == len(STAGES)


def test_parameters_lie_in_parts_where_the_mesh_says_so(one: Any, eight: Any) -> None:
    assert set(one["parted"].values()) == set(eight["data"]["parted"].values()) == {0}
    assert all(count > 0 for count in eight["data+fsdp+model"]["parted"].values())


@pytest.mark.parametrize("mesh", MESHES)
def test_constraints_of_the_modules_are_in_the_program(eight: Any, mesh: str) -> None:
    assert eight[mesh]["constraints"]["generator"] > 0


def test_only_training_needs_a_batch_that_the_devices_divide(eight: Any) -> None:
    assert eight["batch_sizes"] == {
        "eval": 104,
        "used": 12,
        "other stage": 8,
        "train": "train.first.batch_size=12 must be a multiple of data x fsdp = 8, e.g. 16",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
