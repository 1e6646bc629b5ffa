"""Recorder: a state that tells every batch and key that it has seen, in milliseconds a step.

Claim     Two states are equal only after the same steps on the same batches in the same order.
Evidence  `scripts/chaos.py` kills its runs; `scripts/corrupt.py` damages its checkpoints.
Command   bigr train --config=scripts/recorder.py
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bigr_jax.api import Aux, Method, Sum
from bigr_jax.data.augment import to_float
from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("small",)
LANES = 4
# Odd, so that no information is lost by multiplying modulo 2^32 (Knuth's multiplicative hashing).
FACTOR = 2654435761


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings: 24 steps, saved every 4, measured every 6."""
    config = base(__file__, variant)
    config.data = section(source="digits", size=4, channels=0, num_classes=0, examples=0)
    every = dict(log="1 steps", evaluate="6 steps", save="4 steps")
    config.train = section(
        recorder=stage("24 steps", 8, eval_batch_size=360, lr=1e-2, ema=0.9, keep=2, **every)
    )
    return config


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: a linear map, its average, and the chain of what was seen."""
    net = nn.Dense(config.data.num_classes)
    _ = config.data.channels, config.data.size

    def logits(variables: Any, batch: Any) -> Any:
        images = to_float(batch["image"])
        return net.apply({"params": variables["params"]}, images.reshape(len(images), -1))

    def init(key: Any, batch: Any, given: Any) -> Any:
        images = to_float(batch["image"])
        chain = jnp.zeros(LANES, jnp.uint32)
        return {**net.init(key, images.reshape(len(images), -1)), "record": {"chain": chain}}

    def costs(variables: Any, batch: Any) -> Any:
        found = logits(variables, batch)
        return optax.softmax_cross_entropy_with_integer_labels(found, batch["label"])

    def loss(variables: Any, key: Any, batch: Any, given: Any) -> tuple[Any, Aux]:
        rows = jnp.arange(len(batch["index"]), dtype=jnp.uint32) * 2 + 1
        seen = (rows * (batch["index"].astype(jnp.uint32) + 1)).sum()
        drawn = jax.random.bits(key, (LANES,), jnp.uint32)
        chain = variables["record"]["chain"] * jnp.uint32(FACTOR) + seen + drawn
        return costs(variables, batch).mean(), Aux({}, {"record": {"chain": chain}})

    def evaluate(variables: Any, key: Any, batch: Any, given: Any) -> dict[str, Sum]:
        mask = batch["mask"]
        return {"loss": Sum((costs(variables, batch) * mask).sum(), mask.sum())}

    return {"recorder": Method(init, loss, evaluate)}


def study(config: Any, lab: Any) -> None:
    """Measures nothing: the scripts do."""
