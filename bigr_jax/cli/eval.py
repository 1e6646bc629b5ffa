"""`bigr eval`: measures a trained experiment again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from bigr_jax.cli.command import Arguments, Command, cache_compilations
from bigr_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Declares --workdir and --stage."""
    flags.DEFINE_string("workdir", None, "folder that `bigr train` filled", flag_values=values)
    flags.DEFINE_string("stage", None, "measure this stage only; default all", flag_values=values)


def run(arguments: Arguments) -> None:
    """Measures the finished stages and prints what results.json then holds."""
    workdir = required_workdir(arguments)
    cache_compilations()
    from bigr_jax.train import commands

    rows = list(leaves(commands.evaluate(workdir, arguments.flags.stage)))
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        print(f"{name:<{width}}  {text}")


def required_workdir(arguments: Arguments) -> str:
    """Returns --workdir. Raises UserError without one."""
    if not arguments.flags.workdir:
        raise UserError("--workdir is missing, the folder of a run, e.g. --workdir=runs/bigr-small")
    return str(arguments.flags.workdir)


def leaves(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of nested results."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


COMMAND = Command(
    name="eval",
    summary="Measures the finished stages of a run on the test split and writes results.json.",
    usage="--workdir=DIR [--stage=STAGE]",
    example="bigr eval --workdir=runs/bigr-small",
    define=define,
    run=run,
)
