"""Trains every experiment for a few steps on meshes of simulated devices, and compares with one.

    python scripts/meshes.py [--config=bigr:smoke,...] [--devices=1,2,4,8] [--mesh=data=2,fsdp=4]
                             [--steps=12] [--json=FILE]

A row per stage and mesh: the largest relative difference of a loss from that on one device, whether
the parameters begin as the same bits, how many sharding constraints the lowered step holds, and the
share of the parameters' and of the optimizer's bytes that one device keeps. The exit status is 1
where a loss differs by more than 1e-5, a parameter by a bit, or a constraint is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigr_jax import config as configs
from bigr_jax import files, registry
from bigr_jax.api import TrainState
from bigr_jax.data import train_batches
from bigr_jax.train import loop, sharding
from bigr_jax.train.run import Run
from bigr_jax.train.state import eval_variables

# By number of devices.
MESHES: Mapping[int, Sequence[str]] = {
    1: ("data=1",),
    2: ("data=2", "fsdp=2", "model=2", "seq=2"),
    4: ("data=4", "fsdp=4", "data=2,fsdp=2", "model=2,seq=2"),
    8: ("data=8", "fsdp=8", "data=2,fsdp=2,model=2", "fsdp=2,model=2,seq=2", "data=2,seq=4"),
}
TOLERANCE = 1e-5
# Below this a loss is compared as it stands: a hinge that is met is 0.
SMALLEST = 1e-2
HEADER = ("stage", "mesh", "loss", "start", "constraints", "parameters", "optimizer")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    given = arguments(argv)
    if given.child:
        print(json.dumps(list(observed(given.config, given.mesh, given.steps))))
        return 0
    meshes = given.mesh or [mesh for count in given.devices for mesh in MESHES[count]]
    rows = []
    for count, group in itertools.groupby(["data=1", *meshes], devices_of):
        print(f"meshes of {count} device(s) ...", file=sys.stderr)
        rows += started(given.config, list(dict.fromkeys(group)), count, given.steps)
    report = [compared(row, rows) for row in rows]
    if given.json:
        files.write_json(given.json, report)
    for line in [HEADER, ["---"] * len(HEADER), *map(cells, report)]:
        print("| " + " | ".join(line) + " |")
    wrong = [f"{row['stage']} on {row['mesh']}" for row in report if not holds(row)]
    print("\nnot as on one device: " + ", ".join(wrong) if wrong else "\nall as on one device")
    return int(bool(wrong))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    everything = [f"{name}:smoke" for name in registry.names()]
    parser.add_argument("--config", type=comma, default=everything, help="default: all, smoke")
    parser.add_argument("--devices", type=numbers, default=list(MESHES), help="default 1,2,4,8")
    parser.add_argument("--mesh", action="append", help="only this one; may be repeated")
    parser.add_argument("--steps", type=int, default=12, help="of every stage, default 12")
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def comma(text: str) -> list[str]:
    """Returns the parts of a list."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Returns the numbers of a list; each is a key of MESHES."""
    found = [int(part) for part in comma(text)]
    if unknown := set(found) - MESHES.keys():
        raise argparse.ArgumentTypeError(f"{unknown}; legal: {', '.join(map(str, MESHES))}")
    return found


def sizes(mesh: str) -> dict[str, int]:
    """Returns {axis: size} of "data=2,fsdp=4"."""
    return {axis: int(size) for axis, _, size in (part.partition("=") for part in comma(mesh))}


def devices_of(mesh: str) -> int:
    """Returns how many devices a mesh has."""
    return math.prod(sizes(mesh).values())


def started(refs: Sequence[str], meshes: Sequence[str], devices: int, steps: int) -> list[Row]:
    """Returns the rows of meshes of one size, from a process that has so many devices."""
    words = [sys.executable, __file__, "--child", f"--config={','.join(refs)}", f"--steps={steps}"]
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [*words, *(f"--mesh={mesh}" for mesh in meshes)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def observed(refs: Sequence[str], meshes: Sequence[str], steps: int) -> Iterator[Row]:
    """Yields a row for every stage of every experiment on every mesh of this process's devices."""
    for ref, mesh in itertools.product(refs, meshes):
        changes = {f"mesh.{axis}": str(size) for axis, size in {"data": 1, **sizes(mesh)}.items()}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            run = Run(configs.load(ref, changes), folder)
            trained: dict[str, Any] = {}
            for name in run.methods:
                given = {need: trained[need] for need in run.methods[name].needs}
                row, state = trained_few(run, name, given, steps)
                trained[name] = eval_variables(state, run.plan(name).optimizer)
                yield {"stage": f"{run.config.slug}: {name}", "mesh": mesh, **row}


def trained_few(
    run: Run, name: str, given: Mapping[str, Any], steps: int
) -> tuple[Row, TrainState]:
    """Returns what `steps` steps of a stage show, and the state after them."""
    plan = run.plan(name)
    root = jax.device_put(jax.random.key(plan.seed), sharding.replicated(run.mesh))
    host = train_batches(run.sources["train"], plan.batch_size, plan.seed)
    with contextlib.closing(loop.device_batches(host, run.mesh)) as batches, loop.scope(run.mesh):
        state = plan.create(given)
        start = digest(state.variables["params"])
        batch = next(batches)
        lowered = loop.trace_step(plan, state, batch, root, given).lower()
        step, losses = lowered.compile(), []
        for _ in range(steps):
            state, metrics = step(state, batch, root, given)
            losses.append({key: float(metrics[key]) for key in ("loss", "grad_norm")})
            batch = next(batches)
    row = {
        "losses": losses,
        "start": start,
        "constraints": lowered.as_text().count("sdy.sharding_constraint"),
        "parameters": share(plan.abstract.variables["params"]),
        "optimizer": share(plan.abstract.opt_state),
    }
    return row, state


def digest(tree: Any) -> str:
    """Returns the SHA-256 of all leaves."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def share(tree: Any) -> float:
    """Returns the bytes that one device keeps of a placed tree, over those of the whole."""
    whole = part = 0
    for leaf in jax.tree.leaves(tree):
        width = np.dtype(leaf.dtype).itemsize
        whole += width * math.prod(leaf.shape)
        part += width * math.prod(leaf.sharding.shard_shape(leaf.shape))
    return part / whole if whole else 0.0


def compared(row: Row, rows: Sequence[Row]) -> Row:
    """Returns a row with, in place of its losses, the largest difference from one device."""
    one = next(r for r in rows if r["stage"] == row["stage"] and r["mesh"] == "data=1")
    # Of meshes with more than one device; on one, jax keeps none that would do nothing. Over seq
    # Hydra takes another form, which declares more.
    other = max(
        r["constraints"]
        for r in rows
        if r["stage"] == row["stage"] and over_seq(r) == over_seq(row)
    )
    difference = max(
        abs(mine["loss"] - his["loss"]) / max(abs(his["loss"]), SMALLEST)
        for mine, his in zip(row["losses"], one["losses"], strict=True)
    )
    return {
        **row,
        "losses": [entry["loss"] for entry in row["losses"]],
        "difference": difference,
        "same_start": row["start"] == one["start"],
        "declared": other,
    }


def over_seq(row: Row) -> bool:
    """Whether a row's mesh cuts sequences."""
    return sizes(row["mesh"]).get("seq", 1) > 1


def holds(row: Row) -> bool:
    """Whether a row is as it must be."""
    return bool(
        row["difference"] <= TOLERANCE
        and row["same_start"]
        and (row["mesh"] == "data=1" or row["constraints"] == row["declared"])
    )


def cells(row: Row) -> list[str]:
    """Returns a row of the table."""
    return [
        row["stage"],
        row["mesh"],
        f"{row['difference']:.1e}",
        "same bits" if row["same_start"] else "DIFFERS",
        str(row["constraints"]),
        f"{row['parameters']:.1%}",
        f"{row['optimizer']:.1%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
