"""`bigr prove`: runs an experiment's study and writes what it shows."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Declares --workdir and --results."""
    flags.DEFINE_string(
        "workdir", None, "folder of the arms; default runs/NAME-VARIANT-prove", flag_values=values
    )
    flags.DEFINE_string(
        "results", "results", "folder of the evidence; default results", flag_values=values
    )


def run(arguments: Arguments) -> None:
    """Trains and measures the arms of a study, writes the evidence, and prints every claim.

    A claim that does not hold is an outcome like any other, not an error.
    """
    config, results = arguments.config(), arguments.flags.results
    name = f"{Path(config.slug).stem}-{config.variant}-prove"
    workdir = arguments.flags.workdir or os.path.join("runs", name)
    writable("results", results)
    prepare()
    from bigr_jax import registry
    from bigr_jax.lab import Lab
    from bigr_jax.lab.evidence import duration, sentence

    lab = Lab(config, workdir, results)
    registry.load(config.slug).study(config, lab)
    path, found = lab.write(), lab.summary()
    claims = found["claims"]
    for claim in claims:
        print(f"{'holds' if claim['holds'] else 'does not hold':<15}{claim['text']}")
        print(f"{'':<15}{sentence(claim)}")
    count = sum(claim["holds"] for claim in claims)
    print(f"{count} of {len(claims)} claims hold, {duration(found['seconds'])}")
    print(f"{path}\n{path.removesuffix('.json')}.png")


def writable(flag: str, folder: str) -> None:
    """Makes a folder. Raises UserError, before any work is done, where it cannot be written to."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{flag}={folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--{flag}={folder} cannot be written to")


COMMAND = Command(
    name="prove",
    summary="Runs an experiment's study and states what it shows; run again, it goes on.",
    usage="--config=NAME:VARIANT [--config.KEY=VALUE ...] [--workdir=DIR] [--results=DIR]",
    examples=(
        "bigr prove --config=bigr:smoke",
        "bigr prove --config=bigr:small --config.study.seeds=1 --results=runs/once",
    ),
    define=define,
    run=run,
    config=("--config", "--config.KEY"),
    hosts=True,
)
