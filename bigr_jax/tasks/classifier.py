"""Image classification as a method: the cross-entropy of a network on augmented images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Sum, Variables
from bigr_jax.data.augment import augment, to_float
from bigr_jax.data.mixing import mixed, shares

# Beyond the places of the items of a data.augment, which draw by the same key.
_MIXING, _DROPOUT = 2**31, 2**31 + 1


def classifier(
    net: nn.Module,
    *,
    augmentation: str = "",
    smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Method:
    """Returns the method that trains `net` on {"image", "label"}.

    net           called as net(images, deterministic) -> (logits, features); in training it draws
                  from the rng "dropout", and what it keeps beside its parameters, such as
                  "batch_stats", is replaced by what it makes of that
    augmentation  a spec of `bigr_jax.data.augment`, applied on the device
    smoothing     label smoothing in [0, 1)
    mixup, cutmix see `bigr_jax.data.mixing`; the accuracy in training is then that of the class
                  which has the larger share
    """

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, to_float(batch["image"]))

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        images = augment(key, to_float(batch["image"]), augmentation)
        height, width = images.shape[1:3]
        share = shares(jax.random.fold_in(key, _MIXING), (height, width), mixup, cutmix)
        if share is not None:
            images = mixed(images, share[..., None])
        others = [name for name in variables if name != "params"]
        rngs = {"dropout": jax.random.fold_in(key, _DROPOUT)}
        (logits, _), kept = net.apply(variables, images, False, rngs=rngs, mutable=others)
        labels = batch["label"]
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
        if share is not None:
            targets = mixed(targets, share.mean())
            labels = targets.argmax(-1)
        value = optax.softmax_cross_entropy(logits, targets).mean()
        right = (logits.argmax(-1) == labels).astype(jnp.float32).mean()
        return value, Aux({"accuracy": right}, kept)

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        logits, _ = net.apply(variables, to_float(batch["image"]), True)
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        mask, weight = batch["mask"], batch["mask"].sum()
        return {
            "accuracy": Sum((right * mask).sum(), weight),
            "loss": Sum((cost * mask).sum(), weight),
        }

    return Method(init=init, loss=loss, evaluate=evaluate)
