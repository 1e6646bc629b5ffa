"""What `bigr plan` does: the stages of a config, each planned for a machine."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.data.absent import open_or_describe
from bigr_jax.data.described import Described
from bigr_jax.errors import UserError
from bigr_jax.losses.perceptual import stand_in
from bigr_jax.train import advice, memory, overview, plan_report, planning
from bigr_jax.train.planning import Figures
from bigr_jax.train.run import Run


def plan(
    config: ConfigDict,
    name: str,
    devices: Sequence[jax.Device] | None,
    sizes: Mapping[str, int] | None = None,
    stage: str | None = None,
    search: bool = False,
    path: str | None = None,
) -> dict[str, Any]:
    """Prints what the stages of a config take of a machine, and returns the same as numbers.

    name     of the machine, "" for the devices of this one
    devices  of it; None: those that are here
    sizes    of the mesh, in place of the config's
    search   whether remat policies and batch sizes are tried
    path     of a JSON file to write

    Raises UserError for a mistake in the config, and for data that are absent and not described.
    """
    if sizes is not None:
        axes = {f"mesh.{axis}": str(sizes.get(axis, 1)) for axis in config.mesh}
        config = configs.override(config, axes)
    sources = {split: open_or_describe(config.data, split) for split in ("train", "test")}

    def make(overrides: Mapping[str, str], own: str | None = None) -> Run:
        changed = configs.override(config, overrides)
        # No folder of this name can be: nothing is read there, and nothing written.
        return Run(
            changed, os.devnull, stage=own, sources=sources, devices=devices, training=bool(own)
        )

    with stand_in():
        run = make({})
        found: dict[str, Any] = {
            "config": f"{config.slug}:{config.variant}",
            "machine": plan_report.machine(run.mesh, name),
            "stages": {},
        }
        print(_title(run, name))
        for each in run.stage_names(stage):
            one = functools.partial(make, own=each)
            try:
                mine = one({})
            except UserError as error:
                # Batches of another stage may well divide over the mesh.
                if stage is not None or len(run.methods) == 1:
                    raise
                print(f"\n# {each}\nnot planned: {error}")
                continue
            found["stages"][each] = _stage(mine, one, each, name, search)
    if not found["stages"]:
        raise UserError(f"no stage of {config.slug}:{config.variant} can be trained on this mesh")
    if path:
        files.write_json(path, found)
    return found


def figures(run: Run, make: Any, name: str, place: str) -> Figures:
    """Returns the figures of a stage's train step; remat's repetitions are told apart."""
    say(f"compiling the train step of {name} for {place} ...")
    found = planning.plan_step(run, name)
    if any(configs.flat(run.config)[key] != "none" for key in advice.policies(run.config)):
        useful = advice.useful_operations(make, run.config, name)
        found = planning.with_useful(found, useful)
    return found


def say(text: str) -> None:
    """Prints a line of progress."""
    print(text, file=sys.stderr, flush=True)


def _title(run: Run, name: str) -> str:
    mesh, train = run.mesh, run.sources["train"]
    kind = mesh.devices.flat[0].device_kind
    here = "not here, known by their shapes" if isinstance(train, Described) else "here"
    return (
        f"{run.config.slug}:{run.config.variant} on {name or 'the devices of this machine'}: "
        f"{mesh.size} x {kind}, {plan_report.settings(mesh)}\n"
        f"data: {train.info.name}, {len(train):,} examples, {here}"
    )


def _stage(run: Run, make: Any, name: str, machine: str, search: bool) -> dict[str, Any]:
    place = machine or plan_report.settings(run.mesh)
    stage, mesh = run.plan(name), run.mesh
    placed = jax.tree.map(lambda x: x.sharding, stage.abstract.variables)
    print(f"\n# {name}\n{overview.table(run.boxed(name), placed)}\n")
    found: Figures | None = None
    record: dict[str, Any] = {}
    try:
        found = figures(run, make, name, place)
    except memory.OutOfMemory as error:
        if not search:
            raise
        print(error)
    else:
        record["step"] = plan_report.record(found)
        print(plan_report.program(f"train step, batch {stage.batch_size}, per chip", found, mesh))
        if hint := plan_report.saved_by_fsdp(found, mesh):
            print(f"\n  {hint}")
    if run.methods[name].sample is not None:
        size = planning.drawn_at_once(run)
        say(f"compiling the sampler of {name} for {place} ...")
        drawn = planning.plan_sampler(run, name, size)
        record["sampler"] = plan_report.record(drawn)
        print("\n" + plan_report.program(f"sampler, {size} images, per chip", drawn, mesh))
    if search:
        say(f"compiling {name} with other batch sizes and remat policies ...")
        choices = advice.search(make, run.config, name, found)
        record["choices"] = [{**c._asdict(), "mfu": c.bound and c.bound.mfu} for c in choices]
        print("\n" + plan_report.choices(choices))
    return record
