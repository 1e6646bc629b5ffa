"""STN: self-tuning networks, which learn their own regularization (2019, arXiv 1903.03088).

Claim     One training run finds a schedule of dropout and augmentation that beats fixed values
          found by random search and Bayesian optimisation, on CIFAR-10 and on PTB.
Evidence  Digits, 200 to train on, 500 held out and 1097 to test on, 3 seeds: loss .217 and .211
          from rates of .05 and .6, which end close together; four fixed pairs have .223 to .337,
          a plain network with a schedule found .215, and one trained on what is held out too .104.
Command   bigr prove --config=stn:small
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np

from bigr_jax import durations
from bigr_jax.api import Method
from bigr_jax.config import build
from bigr_jax.errors import one_of
from bigr_jax.lab import plots
from bigr_jax.models.response_nets import ResponseAlexNet, ResponseMLP
from bigr_jax.tasks.self_tuning import SelfTuning, self_tuning
from bigr_jax.train import writer
from bigr_jax.train.loop import Evaluator

NAMES = ("input", "hidden")
MOST = 0.9
# Points of a schedule that a plain network is given.
POINTS = 41


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: a classifier and, where they are tuned, its hyper-parameters."""
    data, train, settings = config.data, config.train.model, build(SelfTuning, config.method)
    size = {"batch_size": train.batch_size, "examples": data.examples}
    total = durations.steps(train.duration, key="train.model.duration", **size)
    warmup = durations.steps(settings.warmup, key="config.method.warmup", total=total, **size)
    tuned = len(settings.hypers) if settings.tune else 0
    net = network(config.model, data.num_classes, tuned)
    return {"model": self_tuning(net, settings, warmup, data.augment)}


def network(model: Any, classes: int, tuned: int) -> nn.Module:
    """Returns the classifier that a section names, which answers to `tuned` hyper-parameters."""
    kind, widths, channels, hidden = model.kind, model.widths, model.channels, model.hidden
    if kind == "mlp":
        return ResponseMLP(classes, widths, tuned, model.dtype)
    if kind != "alexnet":
        raise one_of("config.model.kind", kind, ("mlp", "alexnet"))
    return ResponseAlexNet(classes, channels, hidden, tuned, model.dtype)


def starting(*rates: float) -> dict[str, str]:
    """Returns the change that has the two rates start, or stay, where they are given."""
    entries = tuple((name, 0.0, MOST, rate) for name, rate in zip(NAMES, rates, strict=True))
    return {"method.hypers": repr(entries)}


FIXED = {
    f"fixed {name}": {"method.tune": "False", **starting(*rates)}
    for name, rates in {
        ".05": (0.05, 0.05),
        ".3": (0.3, 0.3),
        ".5": (0.5, 0.5),
        ".3/.7": (0.3, 0.7),
    }.items()
}
TUNED = {"STN from .05": starting(0.05, 0.05), "STN from .6": starting(0.6, 0.6)}
SCHEDULED = "schedule of STN"
ALL = "fixed .3, trained on the held-out part too"
ARMS: dict[str, dict[str, str]] = {
    **FIXED,
    **TUNED,
    SCHEDULED: {"method.tune": "False"},
    ALL: {**FIXED["fixed .3"], "data.held_out": "0:700"},
}


def study(config: Any, lab: Any) -> None:
    """Trains all arms on the same 200 examples, for as many steps of the weights."""
    arms = lab.arms(ARMS)
    paths: dict[str, list[np.ndarray]] = {}
    for seed in lab.seeds:
        for arm, changes in arms.items():
            name, own = arm, changes
            if arm == SCHEDULED:
                # Each seed has the schedule of its own run, and so is an arm of its own.
                found = followed(lab.train("STN from .05", TUNED["STN from .05"], seed))
                name, own = f"{arm}, seed {seed}", {**changes, "method.schedule": schedule(found)}
            run = lab.train(name, own, seed)
            for metric, value in measured(run).items():
                lab.record(arm, metric, value, seed)
            if arm in TUNED:
                path = followed(run)
                paths.setdefault(arm, []).append(path)
                for place, title in enumerate(NAMES, 1):
                    lab.record(arm, title, path[-1, place], seed)
                    lab.record(arm, f"{title}, moved", abs(path[-1] - path[0])[place], seed)
    compared(lab, arms)
    if paths:
        lab.figure("schedules", drawn(paths))


def compared(lab: Any, arms: Any) -> None:
    """States the claims; losses are told as shares of what they are compared with."""
    grid = {arm: lab.values(arm, "test loss") for arm in FIXED if arm in arms}
    best = min(grid, key=lambda arm: float(np.mean(list(grid[arm].values()))))
    low, high = TUNED
    for arm in (*TUNED, SCHEDULED):
        for than, title in (("fixed .05", "fixed .05"), (best, "the best fixed")):
            if arm in arms:
                for seed, value in lab.values(arm, "test loss").items():
                    lab.record(arm, f"loss, of {title}", value / grid[than][seed], seed)
    text = "from .05, the test loss is 30 % below that of a fixed .05"
    lab.claim(text, "loss, of fixed .05", low, 0.7, lower=True)
    text = f"and within 5 % of the best fixed pair's ({best})"
    lab.claim(text, "loss, of the best fixed", low, 1.05, lower=True)
    for arm in TUNED:
        for title in NAMES:
            if arm in arms:
                metric = f"{title}, moved"
                lab.claim(f"{arm}, the {title} rate moves away", metric, arm, 0.03)
    lab.claim("even from .6 it is below a fixed .5", "test loss", high, "fixed .5", lower=True)


def measured(run: Any) -> dict[str, float]:
    """Returns the metrics of a finished run, and its loss on what is held out.

    Tested is the test split together with what of the training split no arm has seen.
    """
    evaluate, variables = Evaluator(run.plan("model"), run.mesh, {}), run.variables("model")
    parts = [run.sources["test"], run.sources["train"].left]
    each = [(len(part), evaluate(variables, part)) for part in parts if part is not None]
    total = sum(size for size, _ in each)
    found = {
        f"test {name}": sum(size * told[name] for size, told in each) / total
        for name in ("loss", "accuracy")
    }
    if "held" in run.sources:
        found["held-out loss"] = evaluate(variables, run.sources["held"])["loss"]
    return found


def followed(run: Any) -> np.ndarray:
    """Returns rows (step, rate of the input, of the hidden layers) of the logged steps of a run."""
    rows = [row for row in writer.read(run.workdir, "model") if NAMES[0] in row]
    return np.array([[row["step"], *(row[name] for name in NAMES)] for row in rows])


def schedule(path: np.ndarray) -> str:
    """Returns a few rows of a path, rounded, as the text of a `method.schedule`."""
    few = path[np.unique(np.linspace(0, len(path) - 1, POINTS).astype(int))]
    return repr(tuple(tuple(round(float(x), 4) for x in row) for row in few))


def drawn(paths: Any) -> np.ndarray:
    """Returns the rates over the steps, for either start."""
    runs = {
        f"{name}, {arm}": np.stack([path[:, place] for path in found])
        for arm, found in paths.items()
        for place, name in enumerate(NAMES, 1)
    }
    steps = next(iter(paths.values()))[0][:, 0]
    return plots.lines("Rates of dropout that training finds", steps, runs, "step", "rate")
