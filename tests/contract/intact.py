"""Intact: a linear map of noisy digits of 4 x 4 pixels (2024, made for tests).

Claim     Each of its promises can be broken alone, and the others stay whole.
Evidence  A linear map reads digits better than one that guesses.
Command   bigr train --config={path}:small
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bigr_jax.api import Aux, Method, Sum
from bigr_jax.data.augment import to_float
from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small")
MEMORY: dict[int, float] = {}


def get_config(variant: str = "small") -> ConfigDict:
    config = base(__file__, variant)
    config.data = section(source="digits", size=4, channels=0, num_classes=0, examples=0)
    config.method = section(noise=0.1)
    config.study = section(seeds=1)
    config.train = section(only=stage("12 steps", 16, lr=1e-2, eval_batch_size=359, save="100%"))
    return config


class Net(nn.Module):
    """Logits of flat images, with an offset."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.1), ("embed", "mlp"))
        offset = self.param("offset", nn.initializers.zeros, (self.width,))
        return nn.Dense(self.width, kernel_init=init)(x) + offset


def remembered(step: Any, value: Any) -> Any:
    MEMORY[int(step)] = float(value)
    return np.float32(MEMORY.get(0, 0.0))


def cost(logits: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def flattened(batch: Any) -> Any:
    images = to_float(batch["image"])
    return images.reshape(len(images), -1)


def stages(config: Any) -> dict[str, Method]:
    net, noise, size = Net(config.data.num_classes), config.method.noise, config.data.size

    def init(key, batch, given):
        return {**net.init(key, flattened(batch)), "seen": {"steps": jnp.zeros((), jnp.int32)}}

    def apply(variables, x):
        return net.apply({"params": variables["params"]}, x)

    def loss(variables, key, batch, given):
        steps = variables["seen"]["steps"]
        x = flattened(batch)
        x = x + noise * jax.random.normal(key, x.shape)
        value = cost(apply(variables, x), batch).mean()
        return value, Aux({}, {"seen": {"steps": steps + 1}})

    def evaluate(variables, key, batch, given):
        mask = batch["mask"]
        value = cost(apply(variables, flattened(batch)), batch)
        return {"loss": Sum((value * mask).sum(), mask.sum())}

    def sample(variables, key, labels, given):
        rows = variables["params"]["Dense_0"]["kernel"].T[labels]
        rows = rows + jax.random.normal(key, rows.shape)
        return jax.nn.sigmoid(rows).reshape(-1, size, size, 1)

    return {"only": Method(init, loss, evaluate, sample=sample)}


def study(config: Any, lab: Any) -> None:
    for seed in range(config.study.seeds):
        run = lab.train("linear", seed=seed)
        lab.record("linear", "loss", run.results()["stages"]["only"]["test"]["loss"], seed)
    lab.claim("a linear map is better than a guess", "loss", "linear", np.log(10), lower=True)
