"""`bigr plan`: what training would take of a machine that need not be there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Declares --topology, --mesh, --stage, --search and --json."""
    flags.DEFINE_string(
        "topology", None, "a TPU slice to compile for, none needed: v5e:16x16", flag_values=values
    )
    flags.DEFINE_string(
        "mesh",
        None,
        "in place of the config's, data=2,fsdp=4; without --topology on simulated CPU devices",
        flag_values=values,
    )
    flags.DEFINE_string("stage", None, "plan this stage only; default all", flag_values=values)
    flags.DEFINE_boolean(
        "search", False, "also tries remat policies and batch sizes: minutes", flag_values=values
    )
    flags.DEFINE_string("json", None, "file to write all numbers to", flag_values=values)


def run(arguments: Arguments) -> None:
    """Compiles the programs of an experiment and prints what they take."""
    given = arguments.flags
    config = arguments.config()
    if given.topology or given.mesh:
        # A TPU's programs are compiled here; one that this machine may have is left alone.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from bigr_jax.train import plans, topologies

    sizes = topologies.mesh_sizes(given.mesh) if given.mesh else None
    if given.json and os.path.isdir(given.json):
        raise UserError(f"--json={given.json} is a folder; legal: a file to write")
    devices: Sequence[Any] | None = None
    if given.topology:
        devices = topologies.tpu_slice(given.topology)
    elif sizes:
        devices = topologies.simulated(sizes)
        prepare()
    plans.plan(config, given.topology or "", devices, sizes, given.stage, given.search, given.json)


COMMAND = Command(
    name="plan",
    summary="Prints the memory, FLOPs and traffic of training on a machine that need not be there.",
    usage="--config=NAME:VARIANT [--topology=v5e:16x16] [--mesh=data=32,fsdp=8]",
    examples=(
        "bigr plan --config=bigr:small",
        "bigr plan --config=bigr:small --mesh=data=2,fsdp=4",
        "bigr plan --config=bigr:paper --topology=v5e:16x16 --mesh=data=-1,fsdp=8 --search",
    ),
    define=define,
    run=run,
    config=("--config", "--config.KEY"),
)
