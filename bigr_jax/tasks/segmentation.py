"""Segmentation as a method: the class of every place that the data ask for."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Sum, Variables
from bigr_jax.data.augment import flip, to_float
from bigr_jax.data.source import NOT_ASKED
from bigr_jax.errors import UserError
from bigr_jax.metrics.segmentation import overlaps


def segmenter(net: nn.Module, *, augmentation: str = "", smoothing: float = 0.0) -> Method:
    """Returns the method that trains `net`: (images, deterministic) -> logits [B, H, W, classes].

    A batch holds {"image": uint8 [B, H, W, C]}, which the net sees in [0, 1], or {"features": float
    [B, H, W, F]}, and "segments", uint8 [B, H, W]. The loss is the mean cross-entropy of the places
    that the batch asks for; evaluation gives "accuracy", "loss" and "mean_iou", see `overlaps`.

    augmentation  "" or "flip", which moves images and segments alike; UserError where it is more
    smoothing     label smoothing in [0, 1)
    """
    if augmentation not in ("", "flip"):
        raise UserError(
            f"data.augment={augmentation!r} does not move segments with their images; legal: '', "
            "'flip'"
        )

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, shown(batch), True)

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        move, dropout = jax.random.split(key)
        inputs, wanted = shown(batch), batch["segments"]
        if augmentation:
            # The same key: the same images are mirrored.
            inputs, wanted = flip(move, inputs), flip(move, wanted[..., None])[..., 0]
        others = [name for name in variables if name != "params"]
        rngs = {"dropout": dropout}
        logits, changed = net.apply(variables, inputs, False, rngs=rngs, mutable=others)
        cost, right, asked = told(logits, wanted, smoothing)
        total = jnp.maximum(asked.sum(), 1.0)
        return cost.sum() / total, Aux({"accuracy": right.sum() / total}, changed)

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        logits: Any = net.apply(variables, shown(batch), True)
        # Rows that pad the batch ask for nothing.
        real = batch["mask"][:, None, None] > 0
        wanted = jnp.where(real, batch["segments"], NOT_ASKED)
        cost, right, asked = told(logits, wanted, 0.0)
        weight = asked.sum()
        return {
            "accuracy": Sum(right.sum(), weight),
            "loss": Sum(cost.sum(), weight),
            "mean_iou": overlaps(logits.argmax(-1), wanted, asked > 0, logits.shape[-1]),
        }

    return Method(init=init, loss=loss, evaluate=evaluate)


def shown(batch: Batch) -> Array:
    """Returns what a net sees of a batch: its features, else its images as float32 in [0, 1]."""
    return batch["features"] if "features" in batch else to_float(batch["image"])


def told(logits: Array, wanted: Array, smoothing: float) -> tuple[Array, Array, Array]:
    """Returns the cost of every place, whether its likeliest class is right, and whether it is
    asked for, all float32 [B, H, W] and 0 where it is not.

    Raises ValueError where logits [B, H, W, classes] are not of the places of wanted [B, H, W].
    """
    if logits.shape[:-1] != wanted.shape:
        raise ValueError(f"logits {logits.shape} are not of the places of segments {wanted.shape}")
    asked = (wanted != NOT_ASKED).astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(wanted, logits.shape[-1]), smoothing)
    cost = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    right = (logits.argmax(-1) == wanted).astype(jnp.float32)
    return cost * asked, right * asked, asked
