"""`bigr sample`: draws a picture grid from a trained experiment."""

from __future__ import annotations

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.cli.eval import required_workdir
from bigr_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Declares --workdir, --out, --classes, --captions, --per_class, --seed and --size."""
    flags.DEFINE_string("workdir", None, "folder that `bigr train` filled", flag_values=values)
    flags.DEFINE_string(
        "out", None, "PNG to write; default in the work directory", flag_values=values
    )
    flags.DEFINE_string(
        "classes", "all", "numbers of classes, 3,5; default all", flag_values=values
    )
    flags.DEFINE_string(
        "captions",
        "",
        "of a model that is told in words: a caption a row, 'three and seven; nine and one'",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "per_class", 8, "pictures of each class; default 8", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "seed", 0, "seed of the draw; default 0", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "size",
        None,
        "side of the pictures in pixels; default that of training",
        lower_bound=1,
        flag_values=values,
    )


def run(arguments: Arguments) -> None:
    """Draws a grid, a row per class, and prints the path of its PNG."""
    workdir, given = required_workdir(arguments), arguments.flags
    labels = class_numbers(given.classes)
    prepare()
    from bigr_jax.train import commands

    captions = [words.strip() for words in given.captions.split(";") if words.strip()]
    how = (labels, given.per_class, given.seed, arguments.overrides, captions, given.size)
    print(commands.sample(workdir, given.out, *how))


def class_numbers(text: str) -> list[int] | None:
    """Returns the class numbers in "3,5", or None for "all". Raises UserError for anything else."""
    if text == "all":
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--classes={text} is not a list of class numbers; legal: 3,5 or all")
    return [int(word) for word in words]


COMMAND = Command(
    name="sample",
    summary="Draws pictures from a trained experiment as one PNG, a row per class.",
    usage="--workdir=DIR [--classes=3,5] [--per_class=8] [--seed=0] [--size=32] ...",
    examples=(
        "bigr sample --workdir=runs/bigr-small",
        "bigr sample --workdir=runs/bigr-small --classes=3,5 --per_class=4 --seed=1",
        "bigr sample --workdir=runs/bigr-small --config.sample.cfg_scale=2.5",
        "bigr sample --workdir=runs/bigr-sizes --size=32",
    ),
    define=define,
    run=run,
    config=("--config.KEY",),
    hosts=True,
)
