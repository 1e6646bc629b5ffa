"""`bigr eval`: measures a trained experiment again, by its own metrics or by comparable ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.errors import UserError

# Flags that mean something with --inception, and with --probe, alone.
_COMPARED = ("reference", "images", "samples", "out", "seed", "batch")
_PROBED = ("probe_batch", "probe_epochs", "probe_warmup", "probe_rate")


def define(values: flags.FlagValues) -> None:
    """Declares the flags."""

    def text(name: str, what: str) -> None:
        flags.DEFINE_string(name, None, what, flag_values=values)

    def count(name: str, default: int, what: str, least: int = 1) -> None:
        what = f"{what}; default {default}"
        flags.DEFINE_integer(name, default, what, lower_bound=least, flag_values=values)

    text("workdir", "folder that `bigr train` filled")
    text("stage", "measure this stage only; default all")
    text(
        "inception",
        "FID, sFID, Inception Score, precision, recall and KID by these weights: the state_dict of "
        "pt_inception-2015-12-05 as .npz or .safetensors",
    )
    text("reference", "npz to compare with, as guided-diffusion has them; default the training set")
    text("images", "npz of images to compare, in place of --workdir")
    text("out", "npz that the samples are written to, and gone on with; default in --workdir")
    count("samples", 50_000, "images that are drawn", 2)
    count("seed", 0, "seed of the draw", 0)
    count("batch", 64, "images that are drawn and read at once")
    flags.DEFINE_bool(
        "probe",
        False,
        "linear probes on every layer, trained as MAE's are; writes probe_mae to results.json",
        flag_values=values,
    )
    count("probe_batch", 16_384, "examples of a step, or all where there are fewer", 2)
    count("probe_epochs", 90, "epochs that the probes are trained for")
    count("probe_warmup", 10, "of these, in which the rate rises", 0)
    flags.DEFINE_float(
        "probe_rate",
        0.1,
        "learning rate per 256 examples of a batch; default 0.1, which a small set needs higher",
        flag_values=values,
    )


def run(arguments: Arguments) -> None:
    """Measures, and prints what results.json then holds, or the part of it that is new."""
    given = arguments.flags
    _check(arguments)
    workdir = "" if given.images else required_workdir(arguments)
    prepare()
    if given.inception:
        show(_compared(workdir, arguments))
    elif given.probe:
        show(_probed(workdir, arguments))
    else:
        from bigr_jax.train import commands

        show(commands.evaluate(workdir, given.stage))


def show(results: Mapping[str, Any]) -> None:
    """Prints nested results, a line per number."""
    rows = list(leaves(results))
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


def _check(arguments: Arguments) -> None:
    given = arguments.flags
    told = {name for name in given if given[name].present}
    for needed, names in (("inception", _COMPARED), ("probe", _PROBED)):
        if not given[needed].value and (stray := [name for name in names if name in told]):
            raise UserError(f"--{stray[0]} goes with --{needed}, which is missing")
    if arguments.overrides and not given.inception:
        raise UserError("--config.KEY goes with --inception, which is missing")
    if given.inception and (given.probe or given.stage):
        raise UserError(f"--{'probe' if given.probe else 'stage'} and --inception: one at a time")
    if given.images:
        drawing = ("workdir", "samples", "out", "seed")
        if stray := [f"--{name}" for name in drawing if name in told]:
            raise UserError(f"--images and {stray[0]}: one at a time; nothing is drawn of --images")
        if arguments.overrides:
            raise UserError("--images and --config.KEY: one at a time")


def _compared(workdir: str, arguments: Arguments) -> dict[str, Any]:
    from bigr_jax.train import comparable

    given = arguments.flags
    settings = comparable.Settings(
        given.inception, given.reference, given.samples, given.out, given.seed, given.batch
    )
    if given.images:
        found = comparable.compare_files(given.images, settings)
    else:
        found = comparable.compare_run(workdir, settings, arguments.overrides)
    if found["samples"] < comparable.SAMPLES:
        print(
            f"FID of {found['samples']} images is larger than of {comparable.SAMPLES}: compare it "
            "with that of as many",
            file=sys.stderr,
        )
    return found


def _probed(workdir: str, arguments: Arguments) -> dict[str, Any]:
    from bigr_jax.metrics.probe_mae import Protocol
    from bigr_jax.train import probing

    given = arguments.flags
    protocol = Protocol(given.probe_batch, given.probe_epochs, given.probe_warmup, given.probe_rate)
    return probing.probe_run(workdir, protocol, given.stage)


COMMAND = Command(
    name="eval",
    summary="Measures the finished stages of a run on the test split and writes results.json.\n"
    "With --inception by the metrics that papers compare, with --probe by linear probes.",
    usage="--workdir=DIR [--stage=STAGE] [--inception=FILE [--reference=NPZ]] [--probe]",
    examples=(
        "bigr eval --workdir=runs/bigr-small --stage=tokenizer",
        "bigr eval --workdir=runs/L --inception=inception.npz --reference=imagenet256.npz",
        "bigr eval --workdir=runs/bigr-small --probe --probe_rate=1",
    ),
    define=define,
    run=run,
    config=("--config.KEY",),
    hosts=True,
)
