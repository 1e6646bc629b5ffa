"""ELR: early-learning regularization against wrong labels (2020, arXiv 2007.00151).

Claim     CIFAR-10 with 40 / 80 % of symmetric noise: 89.2 / 73.9 % with a ResNet-34, where the
          cross-entropy alone learns the wrong labels by heart; ELR+ with two networks is better.
Evidence  ELR and ELR+ against cross-entropy on digits, 0 to 80 % of the labels redrawn, and on
          MNIST; 3 seeds: accuracy at the end and at its best, labels learnt by heart, true targets.
Command   bigr prove --config=elr:small
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np

from bigr_jax import pictures
from bigr_jax.api import Method
from bigr_jax.config import build
from bigr_jax.errors import one_of
from bigr_jax.lab import plots
from bigr_jax.models.mlp_classifier import MLPClassifier
from bigr_jax.models.resnet import ResNet
from bigr_jax.tasks.noisy_classifier import EarlyLearning, noisy_classifier
from bigr_jax.train import writer
from bigr_jax.train.loop import Evaluator

ARMS = {
    "CE": {"method.strength": "0.0"},
    "ELR": {},
    # Of the steps, the share over which averages slow down is about the published one.
    "ELR+": {
        "method.networks": "2",
        "method.mixup": "1.0",
        "method.average": "0.997",
        "method.ramp": "1000",
    },
}
MNIST = {
    "data.source": "mnist5k",
    "data.size": "14",
    "data.noise": "symmetric:0.6",
    "model.kind": "resnet",
    "model.depths": "(1, 1, 1)",
    "model.widths": "(16, 32, 64)",
    "train.model.duration": "30 epochs",
    "train.model.optimizer.schedule": "cosine",
}
# The share of labels that are redrawn from all classes: nine in ten of them become wrong.
TASKS: dict[str, dict[str, str]] = {
    **{f"{rate} %": {"data.noise": f"symmetric:{rate / 100}"} for rate in (0, 40, 60, 80)},
    "MNIST, 60 %": MNIST,
}
# Tasks on which ELR+ stands beside the others; it takes three times as long.
HARD = ("60 %", "80 %")
# Beside accuracies: the share of wrong labels that are told as given, and truly, and of targets
# that are largest at the true class; how far the accuracy ends below its best.
MEASURED = ("final", "best", "drop", "memorised", "corrected", "targets")
# (text, task, metric, better, than, lower, by how much at least)
CLAIMS = (
    ("ELR ends above cross-entropy", "40 %", "final", "ELR", "CE", False, 0.15),
    ("cross-entropy learns wrong labels by heart", "40 %", "memorised", "CE", 0.95, False, 0.0),
    ("ELR learns few wrong labels by heart", "40 %", "memorised", "ELR", 0.15, True, 0.0),
    ("cross-entropy ends below its best: early learning", "40 %", "drop", "CE", 0.1, False, 0.0),
    ("ELR ends near its best", "40 %", "drop", "ELR", 0.02, True, 0.0),
    ("the targets know the true labels", "40 %", "targets", "ELR", 0.95, False, 0.0),
    ("without noise ELR is within a point", "0 %", "final", "ELR", "CE", False, -0.01),
    ("ELR ends above cross-entropy", "60 %", "final", "ELR", "CE", False, 0.15),
    ("ELR ends above cross-entropy", "80 %", "final", "ELR", "CE", False, 0.15),
    ("ELR ends above cross-entropy", "MNIST, 60 %", "final", "ELR", "CE", False, 0.0),
    ("two networks end above one", "60 %", "final", "ELR+", "ELR", False, 0.0),
    ("two networks end above one", "80 %", "final", "ELR+", "ELR", False, 0.0),
)


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: a classifier that keeps a target for every training example."""
    data, settings = config.data, build(EarlyLearning, config.method)
    # Filled in of the data; what makes the labels wrong is the source's to read.
    classes, examples, augmentation = data.num_classes, data.examples, data.augment
    net = network(config.model, classes)
    return {"model": noisy_classifier(net, classes, examples, settings, augmentation)}


def network(model: Any, classes: int) -> nn.Module:
    """Returns the classifier that a section names."""
    # All is read for every kind: what it has no use for is no misspelt key.
    found = {name: model[name] for name in ("widths", "depths", "mean", "std", "dtype")}
    if model.kind == "mlp":
        return MLPClassifier(classes, found["widths"], found["dtype"])
    if model.kind not in ("resnet", "preact_resnet"):
        raise one_of("config.model.kind", model.kind, ("mlp", "resnet", "preact_resnet"))
    return ResNet(classes, **found, preact=model.kind == "preact_resnet")


def study(config: Any, lab: Any) -> None:
    """Trains the arms on every task for as many steps, and follows their accuracies."""
    arms = lab.arms(ARMS)
    curves: dict[str, dict[str, list[np.ndarray]]] = {}
    for seed in lab.seeds:
        for task in config.study.tasks:
            for arm, own in arms.items():
                if arm == "ELR+" and task not in HARD:
                    continue
                run = lab.train(f"{arm}, {task}", {**TASKS[task], **own}, seed)
                curve = followed(run)
                curves.setdefault(task, {}).setdefault(arm, []).append(curve)
                for metric, value in measured(run, curve[1]).items():
                    lab.record(arm, f"{task}: {metric}", value, seed)
    for text, task, metric, better, than, lower, margin in CLAIMS:
        if task in config.study.tasks:
            name = f"{task}: {metric}"
            lab.claim(f"{text} ({task})", name, better, than, lower=lower, margin=margin)
    panels = [drawn(task, found) for task, found in curves.items()]
    lab.figure("curves", pictures.grid(np.stack(panels), 2, scale=1))


def drawn(task: str, curves: dict[str, list[np.ndarray]]) -> np.ndarray:
    """Returns a picture of what `followed` gives of every arm and seed, uint8 [H, W, 3]."""
    runs = {arm: np.stack(values)[:, 1] for arm, values in curves.items()}
    epochs = next(iter(curves.values()))[0][0].tolist()
    return plots.lines(f"labels redrawn: {task}", epochs, runs, "epoch", "test accuracy")


def followed(run: Any) -> np.ndarray:
    """Returns after how many epochs a run was measured, and its accuracies on the test split then,
    float64 [2, times].
    """
    rows = [row for row in writer.read(run.workdir, "model") if "test/accuracy" in row]
    epoch = run.config.data.examples / run.config.train.model.batch_size
    return np.array([(row["step"] / epoch, row["test/accuracy"]) for row in rows]).T


def measured(run: Any, accuracies: np.ndarray) -> dict[str, float]:
    """Returns the MEASURED of a finished run: its accuracies on the test split, and the rest on the
    training split, whose true labels it never saw.
    """
    evaluate = Evaluator(run.plan("model"), run.mesh, {})
    found = evaluate(run.variables("model"), run.sources["train"])
    final, best = accuracies[-1], accuracies.max()
    found |= {"final": final, "best": best, "drop": best - final}
    return {name: float(found[name]) for name in MEASURED}
