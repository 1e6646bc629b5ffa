"""Image classification as a method: the cross-entropy of a network on augmented images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Sum, Variables
from bigr_jax.data.augment import augment, to_float


def classifier(net: nn.Module, *, augmentation: str = "", smoothing: float = 0.0) -> Method:
    """Returns the method that trains `net`: images -> (logits, features) on {"image", "label"}.

    augmentation  a spec of `bigr_jax.data.augment`, applied on the device
    smoothing     label smoothing in [0, 1)
    """

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, to_float(batch["image"]))

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        images = augment(key, to_float(batch["image"]), augmentation)
        logits, _ = net.apply(variables, images)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), smoothing)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32).mean()
        return value, Aux({"accuracy": right})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        logits, _ = net.apply(variables, to_float(batch["image"]))
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        mask, weight = batch["mask"], batch["mask"].sum()
        return {
            "accuracy": Sum((right * mask).sum(), weight),
            "loss": Sum((cost * mask).sum(), weight),
        }

    return Method(init=init, loss=loss, evaluate=evaluate)
