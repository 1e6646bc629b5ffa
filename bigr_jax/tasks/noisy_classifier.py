"""Image classification whose labels are partly wrong, with a running target for every example: ELR,
and with two networks, their averages and mixed images ELR+.

Source: Liu et al., arXiv 2007.00151.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Rows, Sum, Variables
from bigr_jax.data.augment import augment, to_float
from bigr_jax.data.mixing import mixed, shares
from bigr_jax.errors import UserError
from bigr_jax.losses import early_learning as elr
from bigr_jax.nn.partition import named
from bigr_jax.ops.tables import mean_of_same, table_rows
from bigr_jax.train import ema

# Beyond the places of the items of a data.augment, which draw by the same key.
_MIXING, _DROPOUT = 2**31, 2**31 + 1


class EarlyLearning(NamedTuple):
    """How targets are kept and what they count for.

    strength  weight of the regularizer; 0 is plain cross-entropy, beside which targets are kept
    momentum  of the targets, in [0, 1]
    networks  1, or 2, of which either makes the other's targets; their mean logits are the answer
    mixup     a of Beta(a, a), from which the share of an image in its sum with another is drawn,
              the larger part its own; 0 for none
    average   decay of the averaged parameters that make the targets; 0: the parameters themselves
    ramp      batches, or micro-batches where gradients are accumulated, over which that decay rises
              as a sigmoid
    """

    strength: float = 3.0
    momentum: float = 0.7
    networks: int = 1
    mixup: float = 0.0
    average: float = 0.0
    ramp: int = 0

    def checked(self) -> EarlyLearning:
        """Returns the settings. Raises UserError, naming the key, where one is not legal."""
        for name, legal, text in (
            ("strength", self.strength >= 0, "0 or more"),
            ("momentum", 0 <= self.momentum <= 1, "in [0, 1]"),
            ("networks", self.networks in (1, 2), "1 or 2"),
            ("mixup", self.mixup >= 0, "0 or more"),
            ("average", 0 <= self.average < 1, "in [0, 1)"),
            ("ramp", self.ramp >= 0, "0 or more"),
        ):
            if not legal:
                raise UserError(f"method.{name}={getattr(self, name)} must be {text}")
        return self


def noisy_classifier(
    net: nn.Module, classes: int, examples: int, settings: EarlyLearning, augmentation: str = ""
) -> Method:
    """Returns the method that trains `net` on {"image", "label", "index"}.

    The targets are `variables["memory"]["targets"]`, float32 [table_rows(examples), networks *
    classes], rows by index. An example that stands in a batch several times moves its target once,
    by the mean of what is believed of it.
    net           see `tasks.classifier`
    augmentation  a spec of `bigr_jax.data.augment`, applied on the device

    Where a batch has "clean" labels, `evaluate` also returns of the examples with wrong ones
    "memorised", those told as labelled, and "corrected", those told truly, and of all "targets",
    those whose target is largest at the true class.
    Raises UserError where a setting is not legal.
    """
    return _Task(net, classes, examples, settings.checked(), augmentation).method()


class _Task(NamedTuple):
    net: nn.Module
    classes: int
    examples: int
    settings: EarlyLearning
    augmentation: str

    def method(self) -> Method:
        return Method(init=self.init, loss=self.loss, evaluate=self.evaluate)

    def init(self, key: Array, batch: Batch, given: Given) -> Variables:
        images, count = to_float(batch["image"]), self.settings.networks
        keys = [key, jax.random.fold_in(key, 1)][:count]
        variables = self._together([self.net.init(k, images) for k in keys])
        shape = (table_rows(self.examples), count * self.classes)
        zeros = named(nn.initializers.zeros, "examples", None)
        variables["memory"] = {"targets": zeros(key, shape)}
        if self.settings.average:
            # A copy: the state is donated, and one buffer cannot be donated twice.
            copies = jax.tree.map(jnp.copy, variables["params"])
            variables["average"] = {"params": copies, "steps": jnp.zeros((), jnp.int32)}
        return variables

    def loss(self, variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        images = augment(key, to_float(batch["image"]), self.augmentation)
        labels = jax.nn.one_hot(batch["label"], self.classes)
        averages, mutable = self._averages(variables)
        before = variables["memory"]["targets"][batch["index"]]
        before = before.reshape(len(before), self.settings.networks, self.classes)
        values, kept, targets, seen = [], [], [], []
        for own in range(self.settings.networks):
            place = jax.random.fold_in(key, own) if own else key
            share = self._share(place, images)
            view = images if share is None else mixed(images, share[..., None])
            logits, stats = self._run(variables, own, view, place)
            believed = self._believed(variables, averages, own, images, place, logits)
            after = elr.updated(
                before[:, own], mean_of_same(batch["index"], believed), self.settings.momentum
            )
            asked, agreed = labels, after
            if share is not None:
                asked, agreed = (mixed(rows, share.mean()) for rows in (labels, after))
            cost = optax.softmax_cross_entropy(logits, asked).mean()
            values.append((cost, elr.early_learning(logits, agreed).mean()))
            kept.append(stats)
            targets.append(after)
            seen.append(logits)
        rows = jnp.stack(targets, 1).reshape(len(images), -1)
        mutable |= self._together(kept) | {"memory": {"targets": Rows(batch["index"], rows)}}
        cost, term = (sum(pair) / len(values) for pair in zip(*values, strict=True))
        told = jnp.stack(seen).mean(0).argmax(-1)
        right = (told == batch["label"]).astype(jnp.float32).mean()
        metrics = {"cross_entropy": cost, "regularizer": term, "accuracy": right}
        # Each network takes the whole gradient of its own loss.
        return (cost + self.settings.strength * term) * len(values), Aux(metrics, mutable)

    def evaluate(self, variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        images, mask = to_float(batch["image"]), batch["mask"]
        own = [self._own(variables, index) for index in range(self.settings.networks)]
        logits = sum(self.net.apply(each, images, True)[0] for each in own) / len(own)
        label, told = batch["label"], logits.argmax(-1)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        found = {"accuracy": (told == label, mask), "loss": (cost, mask)}
        if "clean" in batch:
            clean, wrong = batch["clean"], mask * (label != batch["clean"])
            targets = variables["memory"]["targets"][batch["index"]]
            targets = targets.reshape(len(targets), -1, self.classes).sum(1).argmax(-1)
            found |= {
                "wrong": (label != clean, mask),
                "memorised": (told == label, wrong),
                "corrected": (told == clean, wrong),
                "targets": (targets == clean, mask),
            }
        return {
            name: Sum((value * weight).sum(), weight.sum())
            for name, (value, weight) in found.items()
        }

    def _own(self, variables: Any, index: int) -> dict[str, Any]:
        """Returns the variables of one network."""
        found = {name: variables[name] for name in variables if name not in ("memory", "average")}
        if self.settings.networks > 1:
            found = {name: tree[f"net_{index}"] for name, tree in found.items()}
        return found

    def _together(self, each: list[Any]) -> dict[str, Any]:
        if self.settings.networks == 1:
            return dict(each[0])
        return {
            name: {f"net_{index}": tree[name] for index, tree in enumerate(each)}
            for name in each[0]
        }

    def _run(self, variables: Any, index: int, images: Array, key: Array) -> tuple[Array, Any]:
        own = self._own(variables, index)
        others = [name for name in own if name != "params"]
        rngs = {"dropout": jax.random.fold_in(key, _DROPOUT)}
        (logits, _), kept = self.net.apply(own, images, False, rngs=rngs, mutable=others)
        return logits, kept

    def _share(self, key: Array, images: Array) -> Array | None:
        height, width = images.shape[1:3]
        share = shares(jax.random.fold_in(key, _MIXING), (height, width), self.settings.mixup)
        return None if share is None else jnp.maximum(share, 1 - share)

    def _believed(
        self,
        variables: Any,
        averages: Mapping[str, Any] | None,
        own: int,
        images: Array,
        key: Array,
        logits: Array,
    ) -> Array:
        """Returns what the targets of one network move toward, [batch, classes]."""
        settings = self.settings
        if averages is None and settings.networks == 1 and not settings.mixup:
            return elr.beliefs(logits)
        other = variables if averages is None else {**variables, "params": averages}
        # Batch statistics are those of the batch here too; the running ones are not kept.
        logits, _ = self._run(other, (own + 1) % settings.networks, images, key)
        return jax.lax.stop_gradient(jax.nn.softmax(logits))

    def _averages(self, variables: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the averages that the parameters before this step are a part of, and how to keep
        them.
        """
        if not self.settings.average:
            return None, {}
        steps = variables["average"]["steps"]
        decay = self.settings.average * sigmoid_ramp(steps, self.settings.ramp)
        params = jax.lax.stop_gradient(variables["params"])
        found = ema.update(variables["average"]["params"], params, decay)
        return found, {"average": {"params": found, "steps": steps + 1}}


def sigmoid_ramp(step: Array | int, steps: int) -> Array:
    """Returns exp(-5 (1 - min(step, steps) / steps)^2), from 0.0067 to 1 (Laine and Aila, arXiv
    1610.02242); 1 where `steps` is 0.
    """
    if steps == 0:
        return jnp.float32(1)
    left = 1 - jnp.minimum(step, steps) / steps
    return jnp.exp(-5 * left**2)
