"""`bigr encode`: stores the codes of a run's images, to train on without the tokenizer."""

from __future__ import annotations

import os

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.cli.eval import required_workdir


def define(values: flags.FlagValues) -> None:
    """Declares --workdir, --out, --split, --draws, --flip and --seed."""
    flags.DEFINE_string("workdir", None, "folder that `bigr train` filled", flag_values=values)
    flags.DEFINE_string(
        "out", None, "folder to fill; default codes in the work directory", flag_values=values
    )
    flags.DEFINE_list(
        "split", "train,test", "splits to encode; default train,test", flag_values=values
    )
    flags.DEFINE_integer(
        "draws",
        1,
        "draws of every training image; 0: its rounded bits; default 1",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_bool("flip", False, "the mirrored training images too", flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "seed of the draws; default 0", lower_bound=0, flag_values=values
    )


def run(arguments: Arguments) -> None:
    """Encodes the images and prints the folder of their codes."""
    workdir, given = required_workdir(arguments), arguments.flags
    folder = given.out or os.path.join(workdir, "codes")
    prepare()
    from bigr_jax.train.encoding import encode
    from bigr_jax.train.run import opened

    how = (given.split, given.draws, given.flip, given.seed, arguments.overrides)
    encode(opened(workdir), folder, *how)
    print(folder)


COMMAND = Command(
    name="encode",
    summary="Encodes a run's images by its tokenizer; run again, it goes on where it stopped.",
    usage="--workdir=DIR [--out=FOLDER] [--split=train,test] [--draws=1] [--flip] [--seed=0]",
    examples=(
        "bigr encode --workdir=runs/tok --out=codes",
        "bigr encode --workdir=runs/tok --draws=4 --flip --config.data.source=folder:photos",
    ),
    define=define,
    run=run,
    config=("--config.KEY",),
    hosts=True,
)
