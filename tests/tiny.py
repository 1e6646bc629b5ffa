"""Tiny: two linear maps on digits of 4 x 4 pixels, a config and an experiment in one file.

Claim     A step takes less than a millisecond.
Evidence  The tests of the trainer.
Command   bigr train --config=tests/tiny.py
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bigr_jax import pictures
from bigr_jax.api import Aux, Method, Report, Sum
from bigr_jax.data.augment import to_float
from bigr_jax.train.defaults import base, stage

VARIANTS = ("small",)


def get_config(variant: str = "small") -> ConfigDict:
    config = base(__file__, variant)
    config.data = ConfigDict(dict(source="digits", size=4, channels=0, num_classes=0, examples=0))
    config.method = ConfigDict(dict(noise=0.1, poison="", at=0))
    config.sample = ConfigDict(dict(noise=0.1))
    config.report = ConfigDict(dict(bias=0.0))
    config.study = ConfigDict(dict(seeds=2, arms=()))
    settings: dict[str, Any] = dict(batch_size=8, log="1 steps", evaluate="5 steps", save="4 steps")
    first = stage(duration="12 steps", eval_batch_size=100, lr=1e-2, **settings)
    second = stage(duration="6 steps", eval_batch_size=100, lr=1e-2, ema=0.9, **settings)
    config.train = ConfigDict(dict(first=first, second=second))
    return config


def flattened(batch: Any) -> Any:
    images = to_float(batch["image"])
    return images.reshape(len(images), -1)


def cost(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def root(params: Any) -> Any:
    """Returns 0, with a slope that is not finite."""
    return jnp.sqrt(0.0 * params["kernel"].sum())


def stages(config: Any) -> dict[str, Method]:
    classes, size, settings = config.data.num_classes, config.data.size, config.method
    channels = config.data.channels
    kernel = nn.with_logical_partitioning(nn.initializers.normal(0.1), ("embed", "mlp"))
    net = nn.Dense(classes, kernel_init=kernel)
    poison, at, noise = settings.poison, settings.at, settings.noise
    spread, bias = config.sample.noise, config.report.bias

    def init(key, batch, given):
        return {**net.init(key, flattened(batch)), "seen": {"steps": jnp.zeros((), jnp.int32)}}

    def loss(variables, key, batch, given):
        params, steps = {"params": variables["params"]}, variables["seen"]["steps"] + 1
        x = flattened(batch)
        logits = net.apply(params, x + noise * jax.random.normal(key, x.shape))
        value = cost(logits, batch["label"]).mean()
        if poison == "loss":
            value = jnp.where(steps == at, jnp.nan, value)
        if poison == "data":
            value = jnp.where((batch["index"] == at).any(), jnp.nan, value)
        if poison == "gradient":
            value += jax.lax.cond(steps == at, root, lambda p: 0.0, variables["params"])
        return value, Aux({"first_index": batch["index"][0]}, {"seen": {"steps": steps}})

    def evaluate(variables, key, batch, given):
        mask = batch["mask"]
        logits = net.apply({"params": variables["params"]}, flattened(batch))
        named = {"loss": cost(logits, batch["label"]), "index": batch["index"]}
        return {name: Sum((value * mask).sum(), mask.sum()) for name, value in named.items()}

    def second_init(key, batch, given):
        return net.init(key, jnp.zeros((1, classes)))

    def read(variables, given, batch):
        below = net.apply({"params": given["first"]["params"]}, flattened(batch))
        return net.apply(variables, below)

    def second_loss(variables, key, batch, given):
        return cost(read(variables, given, batch), batch["label"]).mean(), Aux({})

    def second_evaluate(variables, key, batch, given):
        mask = batch["mask"]
        value = cost(read(variables, given, batch), batch["label"])
        return {"loss": Sum((value * mask).sum(), mask.sum())}

    def sample(variables, key, labels, given):
        rows = given["first"]["params"]["kernel"].T[labels].reshape(-1, size, size, channels)
        return jax.nn.sigmoid(rows + spread * jax.random.normal(key, rows.shape))

    def report(variables, key, data, given):
        names = data["train"].info.class_names
        images = np.asarray(sample(variables, key, jnp.arange(classes), given))
        metrics = {"brightness": float(images.mean()) + bias, "spread": spread}
        return Report(metrics, {"samples": pictures.grid(images, 1, names=names)})

    return {
        "first": Method(init, loss, evaluate),
        "second": Method(
            second_init, second_loss, second_evaluate, ("first",), sample=sample, report=report
        ),
    }


def study(config: Any, lab: Any) -> None:
    for seed in lab.seeds:
        for arm, rate in (("slow", "1e-4"), ("fast", "0.1")):
            run = lab.train(arm, {"train.first.optimizer.lr": rate}, seed, stage="first")
            lab.measure(arm, seed, functools.partial(run.evaluate, "first"))
        for arm, noise in (("noisy", "0.5"), ("quiet", "0.0")):
            run = lab.train(arm, {"sample.noise": noise}, seed)
            lab.measure(arm, seed, functools.partial(drawn, run, lab, seed))
    lab.claim("a higher rate learns faster", "loss", "fast", "slow", lower=True)
    lab.claim("more noise spreads more", "spread", "noisy", "quiet", margin=0.1)


def drawn(run: Any, lab: Any, seed: int) -> dict[str, float]:
    report = run.report("second", seed)
    lab.figure("samples", report.images["samples"])
    return {"spread": report.metrics["spread"]}
