"""`bigr train`: trains an experiment, or goes on with it."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare


def define(values: flags.FlagValues) -> None:
    """Declares --workdir, --stage and --profile."""
    flags.DEFINE_string(
        "workdir", None, "folder of the run; default runs/NAME-VARIANT", flag_values=values
    )
    flags.DEFINE_string(
        "stage", None, "train this stage only; default all, in order", flag_values=values
    )
    flags.DEFINE_string(
        "base",
        None,
        "another work directory: what --stage builds on is taken from there",
        flag_values=values,
    )
    flags.DEFINE_string(
        "profile", None, "first and last step to trace for a profiler, 10:13", flag_values=values
    )


def run(arguments: Arguments) -> None:
    """Trains the stages of an experiment in its work directory."""
    config = arguments.config()
    name = f"{Path(config.slug).stem}-{config.variant}"
    workdir = arguments.flags.workdir or os.path.join("runs", name)
    prepare()
    from bigr_jax.train import commands

    given = arguments.flags
    commands.train(config, workdir, given.stage, given.profile, given.base)


COMMAND = Command(
    name="train",
    summary="Trains the stages of an experiment; run again, it goes on where it stopped.",
    usage="--config=NAME:VARIANT [--workdir=DIR] [--stage=STAGE [--base=DIR]]",
    examples=(
        "bigr train --config=bigr:small",
        "bigr train --config=bigr:small --config.model.depth=4 --workdir=runs/deep",
        "bigr train --config=bigr:small --stage=generator --base=runs/deep --workdir=runs/other",
    ),
    define=define,
    run=run,
    config=("--config", "--config.KEY"),
    hosts=True,
)
