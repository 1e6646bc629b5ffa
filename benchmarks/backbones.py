"""Hydra against attention as the backbone of BiGR: what each draws, and what it costs.

    python benchmarks/backbones.py [--tokens=256,1024] [--seeds=3] [--steps=500] [--batch=4096]
                                   [--rates=0.012,0.012] [--images=20] [--repeats=5]
                                   [--set=KEY=VALUE ...] [--workdir=runs/backbones]

Real digits (mnist5k, 32 x 32 pixels) become grids of tokens, and for each number of tokens one
tokenizer and one referee serve both backbones. These have as many parameters, within a few: the
feed-forward layers beside Hydra are so much narrower as it is larger. All else is equal, steps,
data and seeds too. What is trained already in --workdir is not trained again.

bits         to write down a test image by the model, an upper bound
frechet      between drawn and test images, in the referee's features
as asked     share of the drawn images that the referee reads as the class that was asked for
probe        accuracy of a linear probe on the features of a layer chosen on held-out images
train, draw  how many times as long as attention a training step and a drawn image take: the
             median, and the range, of turns that alternate
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from timing import Form, interleaved, positive, ratio, table

from bigr_jax import config as configs
from bigr_jax.cli.command import prepare
from bigr_jax.data import train_batches
from bigr_jax.errors import UserError
from bigr_jax.lab import Lab
from bigr_jax.train import loop, sharding
from bigr_jax.train.run import Run

BACKBONES = ("attention", "hydra")
STAGE = "generator"
# By the number of tokens: how far the tokenizer goes down, and the bits of a token.
GRIDS = {
    16: {"tokenizer.multipliers": "(1, 2, 4, 8)", "tokenizer.bits": "32"},
    64: {"tokenizer.multipliers": "(1, 2, 4)", "tokenizer.bits": "16"},
    256: {"tokenizer.multipliers": "(1, 2)", "tokenizer.bits": "8"},
    1024: {"tokenizer.multipliers": "(1,)", "tokenizer.bits": "4"},
}
SIZES = {
    "tokenizer.filters": "4",
    "tokenizer.embedding": "16",
    "model.width": "96",
    "model.ffn_hidden": "192",
    "model.depth": "2",
    "model.head_width": "64",
}
METRICS = ("bits_per_image", "frechet", "agreement", "probe")
HEADER = ["tokens", "backbone", "parameters", "bits", "frechet", "as asked", "probe"]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, measures and times all, and prints the table; returns the exit status."""
    given = arguments(argv)
    prepare()
    rows: list[list[str]] = []
    try:
        for tokens in given.tokens:
            rows += compared(given, tokens)
    except UserError as error:
        print(f"bigr: {error}", file=sys.stderr)
        return 2
    print(
        f"\n{given.steps} steps of {given.batch} tokens, {given.seeds} seeds, "
        f"{10 * given.images} images drawn, on {jax.devices()[0].device_kind}\n"
    )
    print(table([*HEADER, "train", "draw"], rows))
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=grids, default=(256, 1024), help="default 256,1024")
    for name, default, text in (
        ("seeds", 3, "runs of each backbone"),
        ("steps", 500, "of training"),
        ("batch", 4096, "tokens of a step"),
        ("images", 20, "of each class that are drawn to be judged"),
        ("repeats", 5, "of every timing"),
    ):
        text = f"{text}; default {default}"
        parser.add_argument(f"--{name}", type=positive, default=default, help=text)
    text = "learning rates of attention and of Hydra; default 0.012,0.012"
    parser.add_argument("--rates", type=rates, default=(0.012, 0.012), help=text)
    text = "another setting of bigr:small, KEY=VALUE; repeatable"
    parser.add_argument("--set", action="append", type=setting, default=[], help=text)
    text = "where the runs are kept; default runs/backbones"
    parser.add_argument("--workdir", default="runs/backbones", help=text)
    return parser.parse_args(argv)


def grids(text: str) -> tuple[int, ...]:
    """Reads "256,1024"; a number of tokens that is none of GRIDS is refused by argparse."""
    found = tuple(int(word) for word in text.split(","))
    if set(found) - set(GRIDS):
        raise ValueError(text)
    return found


def rates(text: str) -> tuple[float, ...]:
    """Reads a rate for each backbone; any other number of them is refused by argparse."""
    found = tuple(float(word) for word in text.split(","))
    if len(found) != len(BACKBONES) or min(found) <= 0:
        raise ValueError(text)
    return found


def setting(text: str) -> tuple[str, str]:
    """Reads "model.depth=2"; what has no = is refused by argparse."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    return key, value


def compared(given: argparse.Namespace, tokens: int) -> list[list[str]]:
    """Returns the rows of one number of tokens."""
    changes = {
        **GRIDS[tokens],
        **SIZES,
        "report.per_class": str(given.images),
        "train.generator.duration": f"{given.steps} steps",
        "train.generator.batch_size": str(max(given.batch // tokens, 1)),
        **dict(given.set),
    }
    config, where = configs.load("bigr:small", changes), os.path.join(given.workdir, str(tokens))
    lab = Lab(config, where, where)
    arms = {
        name: {"train.generator.optimizer.lr": str(rate)}
        for name, rate in zip(BACKBONES, given.rates, strict=True)
    }
    arms["hydra"] |= {"model.mixer": "hydra"}
    arms["hydra"]["model.ffn_hidden"] = str(as_large(config, where, arms["hydra"]))
    runs: dict[str, Run] = {}
    for seed, (name, arm) in itertools.product(range(given.seeds), arms.items()):
        run = runs[name] = lab.train(name, arm, seed, stage=STAGE)
        lab.measure(name, seed, functools.partial(run.measured, STAGE))
    trained = interleaved({name: stepping(run) for name, run in runs.items()}, given.repeats)
    drawn = interleaved({name: drawing(run) for name, run in runs.items()}, given.repeats)
    return [
        [
            str(tokens),
            name,
            f"{size(run):,}",
            *(told(lab, name, metric) for metric in METRICS),
            str(ratio(trained[name], trained["attention"])),
            str(ratio(drawn[name], drawn["attention"])),
        ]
        for name, run in runs.items()
    ]


def as_large(config: Any, where: str, changes: Mapping[str, str]) -> int:
    """Returns the hidden features with which a changed model is nearest to the config's in size."""

    def parameters(more: Mapping[str, str]) -> int:
        return size(Run(configs.override(config, more), where))

    hidden = config.model.ffn_hidden
    wanted, whole = parameters({}), parameters(changes)
    each = whole - parameters({**changes, "model.ffn_hidden": str(hidden - 1)})
    return max(1, round(hidden - (whole - wanted) / each))


def size(run: Run) -> int:
    """Returns the number of the generator's parameters."""
    return sum(x.size for x in jax.tree.leaves(run.plan(STAGE).abstract.variables["params"]))


def stepping(run: Run) -> Form:
    """Returns a form that takes a training step from what was trained."""
    plan, given = run.plan(STAGE), run.given(STAGE)
    root = sharding.root_key(plan.seed, run.mesh)
    host = train_batches(run.sources["train"], plan.batch_size, plan.seed)
    batch = next(loop.device_batches(host, run.mesh))
    with loop.scope(run.mesh):
        state = plan.create(given)
        program = loop.compile_step(plan, state, batch, root, given)
    kept = [state]

    def step(turn: int) -> Any:
        # A step takes the memory of the state that it is given.
        kept[0], metrics = program.step(kept[0], batch, root, given)
        return metrics

    return step


def drawing(run: Run) -> Form:
    """Returns a form that draws an image of each class."""
    variables, given = run.variables(STAGE), run.given(STAGE)
    labels, sample = jnp.arange(run.config.data.num_classes), run.methods[STAGE].sample
    assert sample is not None
    draw = jax.jit(sample)

    def drawn(turn: int) -> Any:
        with loop.scope(run.mesh):
            return draw(variables, jax.random.key(turn), labels, given)

    return drawn


def told(lab: Lab, name: str, metric: str) -> str:
    """Returns mean and standard deviation over the seeds, "-" of what was not measured."""
    try:
        values = list(lab.values(name, metric).values())
    except KeyError:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


if __name__ == "__main__":
    sys.exit(main())
