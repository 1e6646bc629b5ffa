"""Image classification that tunes its own regularization: a self-tuning network, and the plain
network with fixed or scheduled hyper-parameters that it is compared with.

Source: MacKay et al., arXiv 1903.03088, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax.api import Apply, Array, Aux, Batch, Given, Method, Sum, TrainState, Variables
from bigr_jax.data.augment import augment, to_float
from bigr_jax.data.division import PREFIX
from bigr_jax.data.example_augment import NAMES, example_augment
from bigr_jax.errors import UserError
from bigr_jax.nn import hyperparameters as hyper
from bigr_jax.nn.hyperparameters import HyperSet
from bigr_jax.train import optimizers
from bigr_jax.train.groups import by_group

_AUGMENT, _PERTURB, _DROPOUT = range(3)


class SelfTuning(NamedTuple):
    """How hyper-parameters are learnt beside the weights.

    hypers       (name, low, high, start[, discrete]) of each, see `nn.hyperparameters.Hyper`
    tune         whether they are; else a plain network is trained, with the starts, or a schedule
    train_steps  steps of the weights in one step of the trainer, which share its batch
    valid_steps  steps of the hyper-parameters, which share the rows that are held out
    warmup       how long the weights learn alone, a duration
    lr           of the hyper-parameters and of their spread, by Adam
    spread       with which every example's own are drawn about them at the start, in unconstrained
                 form
    entropy      what a nat of the entropy of that distribution is worth
    schedule     without `tune`: (step, value of each) rows between which values are interpolated
    """

    hypers: tuple[tuple[str | float | bool, ...], ...]
    tune: bool = True
    train_steps: int = 2
    valid_steps: int = 1
    warmup: str = "0%"
    lr: float = 3e-3
    spread: float = 0.5
    entropy: float = 1e-3
    schedule: tuple[tuple[float, ...], ...] = ()

    def checked(self, names: tuple[str, ...]) -> SelfTuning:
        """Returns the settings. Raises UserError, naming the key, where one is not legal."""
        for name, legal, text in (
            ("train_steps", self.train_steps >= 1, "1 or more"),
            ("valid_steps", self.valid_steps >= 1, "1 or more"),
            ("spread", self.spread > 0, "above 0"),
            ("lr", self.lr >= 0, "0 or more"),
            ("entropy", self.entropy >= 0, "0 or more"),
            ("schedule", not (self.tune and self.schedule), "() where method.tune is True"),
        ):
            if not legal:
                raise UserError(f"method.{name}={getattr(self, name)} must be {text}")
        steps = [row[0] for row in self.schedule]
        if steps != sorted(steps) or any(len(row) != 1 + len(names) for row in self.schedule):
            raise UserError(
                f"method.schedule: rows must be (step, {', '.join(names)}), the steps rising"
            )
        return self


def self_tuning(
    net: nn.Module, settings: SelfTuning, warmup: int = 0, augmentation: str = ""
) -> Method:
    """Returns the method that trains `net` on {"image", "label"}, and its hyper-parameters on
    {"held_image", "held_label"}, which `data.held_out` puts into the same batch.

    params["weights"] are the network's; params["hyper"], where they are learnt, {"center",
    "spread"}, float32 [n] in unconstrained form, of the spread before its softplus. Either group
    has an optimizer of its own. Metrics name the value of each hyper-parameter, and as "spread_..."
    the deviation in unconstrained form with which examples have others.
    net           called as net(images, h [B, n] or None, rates) -> logits, see
                  `models.response_nets`; a name of `example_augment.NAMES` is a strength, all
                  others are rates of dropout
    warmup        steps of the trainer in `settings.warmup`
    augmentation  a spec of `bigr_jax.data.augment`, applied before

    Raises UserError where a setting is not legal, or nothing is held out.
    """
    hypers = HyperSet.of(settings.hypers, "method.hypers")
    return _Task(net, hypers, settings.checked(hypers.names), warmup, augmentation).method()


class _Task(NamedTuple):
    net: nn.Module
    hypers: HyperSet
    settings: SelfTuning
    warmup: int
    augmentation: str

    def method(self) -> Method:
        return Method(self.init, self.loss, self.evaluate, optimizer=self.optimizer, step=self.step)

    def init(self, key: Array, batch: Batch, given: Given) -> Variables:
        if self.settings.tune and f"{PREFIX}image" not in batch:
            raise UserError(
                "data.held_out holds nothing out, but method.tune=True learns from that; legal: "
                "'20%' or a number of examples"
            )
        images, center = to_float(batch["image"]), self.hypers.free()
        h = jnp.broadcast_to(center, (len(images), len(center))) if self.settings.tune else None
        params = {"weights": self.net.init(key, images, h)["params"]}
        if self.settings.tune:
            spread = jnp.full_like(center, hyper.softplus_inverse(self.settings.spread))
            params["hyper"] = {"center": center, "spread": spread}
        return {"params": params}

    def optimizer(
        self, section: Any, total: int, params: Any, resolve: Callable[[str, str], int], key: str
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Of the weights that of the section, whose schedule counts steps of the trainer."""
        times = self.settings.train_steps

        def longer(text: str, key: str) -> int:
            return times * resolve(text, key)

        own = {"weights": params["weights"]}
        tx, schedule = optimizers.make(section, times * total, own, longer, key)
        groups = {"weights": tx}
        if self.settings.tune:
            groups["hyper"] = optax.adam(self.settings.lr)
        return by_group(groups), lambda step: schedule(times * step)

    def loss(self, variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        """That of the weights, at the starts of what is not learnt."""
        value, right = self._train_loss(variables["params"], key, batch, jnp.zeros((), jnp.int32))
        return value, Aux({"accuracy": right})

    def step(
        self, state: TrainState, key: Array, batch: Batch, given: Given, apply: Apply
    ) -> tuple[TrainState, Any]:
        """Steps of the weights, then of the hyper-parameters; one step of the trainer."""
        settings, begin = self.settings, state.step
        own = {name: x for name, x in batch.items() if not name.startswith(PREFIX)}
        found = []
        for index, rows in enumerate(_micro(own, settings.train_steps)):
            params, place = state.variables["params"], jax.random.fold_in(key, index)
            (value, right), grads = jax.value_and_grad(
                lambda weights, p=params, k=place, r=rows: self._train_loss(
                    {**p, "weights": weights}, k, r, begin
                ),
                has_aux=True,
            )(params["weights"])
            state, told = apply(state._replace(step=begin), {"weights": grads}, {})
            found.append((value, right))
        loss, right = (sum(pair) / len(found) for pair in zip(*found, strict=True))
        metrics = {"loss": loss, "accuracy": right, **told}
        if settings.tune:
            state, cost = self._tuned(state._replace(step=begin), key, batch, apply)
            metrics["held_loss"] = cost
        return state, {**metrics, **self._shown(state.variables["params"], begin)}

    def evaluate(self, variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        """At the center, without dropout and augmentation."""
        params, images = variables["params"], to_float(batch["image"])
        h = None
        if self.settings.tune:
            center = params["hyper"]["center"]
            h = jnp.broadcast_to(center, (len(images), len(center)))
        logits: Any = self.net.apply({"params": params["weights"]}, images, h)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        mask, weight = batch["mask"], batch["mask"].sum()
        return {
            "accuracy": Sum((right * mask).sum(), weight),
            "loss": Sum((cost * mask).sum(), weight),
        }

    def _tuned(
        self, state: TrainState, key: Array, batch: Batch, apply: Apply
    ) -> tuple[TrainState, Array]:
        """Returns the state after steps of the hyper-parameters, from the warm-up on, and their
        mean loss.
        """
        settings, begin, costs = self.settings, state.step, []
        held = {
            name.removeprefix(PREFIX): x for name, x in batch.items() if name.startswith(PREFIX)
        }
        for index, rows in enumerate(_micro(held, settings.valid_steps)):
            params = state.variables["params"]
            place = jax.random.fold_in(key, settings.train_steps + index)
            (_, cost), grads = jax.value_and_grad(
                lambda own, p=params, k=place, r=rows: self._valid_loss({**p, "hyper": own}, k, r),
                has_aux=True,
            )(params["hyper"])
            after, _ = apply(state._replace(step=begin), {"hyper": grads}, {})
            due = begin >= self.warmup
            state = jax.tree.map(lambda new, old, on=due: jnp.where(on, new, old), after, state)
            costs.append(cost)
        return state._replace(step=after.step), sum(costs) / len(costs)

    def _train_loss(self, params: Any, key: Array, rows: Batch, step: Array) -> tuple[Array, Array]:
        place = jax.random.fold_in(key, _AUGMENT)
        images = augment(place, to_float(rows["image"]), self.augmentation)
        h, values = self._drawn(params, jax.random.fold_in(key, _PERTURB), len(images), step)
        # The hyper-parameters are the other loss's to move.
        h = None if h is None else jax.lax.stop_gradient(h)
        strengths = {name: value for name, value in values.items() if name in NAMES}
        rates = {name: value for name, value in values.items() if name not in NAMES}
        drop, change = jax.random.split(jax.random.fold_in(key, _DROPOUT))
        images = example_augment(change, images, strengths)
        own = {"params": params["weights"]}
        logits: Any = self.net.apply(own, images, h, rates, rngs={"dropout": drop})
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, rows["label"])
        return cost.mean(), (logits.argmax(-1) == rows["label"]).astype(jnp.float32).mean()

    def _valid_loss(self, params: Any, key: Array, rows: Batch) -> tuple[Array, Array]:
        """Without dropout and augmentation, so that the weights' answer is the only way in."""
        images, own = to_float(rows["image"]), params["hyper"]
        h = hyper.perturbed(key, own["center"], own["spread"], len(images))
        logits = self.net.apply({"params": params["weights"]}, images, h)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, rows["label"]).mean()
        return cost - self.settings.entropy * hyper.entropy(own["spread"]), cost

    def _drawn(
        self, params: Any, key: Array, rows: int, step: Array
    ) -> tuple[Array | None, dict[str, Array]]:
        """Returns h [rows, n], None where nothing is learnt, and {name: [rows]} of the values."""
        if self.settings.tune:
            own = params["hyper"]
            h = hyper.perturbed(key, own["center"], own["spread"], rows)
            return h, self.hypers.values(h)
        values = self._scheduled(step)
        return None, {name: jnp.full(rows, value) for name, value in values.items()}

    def _scheduled(self, step: Array) -> dict[str, Array]:
        if not self.settings.schedule:
            return {one.name: jnp.float32(one.start) for one in self.hypers.entries}
        table = np.array(self.settings.schedule, np.float32)
        return {
            name: jnp.interp(step.astype(jnp.float32), table[:, 0], table[:, 1 + place])
            for place, name in enumerate(self.hypers.names)
        }

    def _shown(self, params: Any, step: Array) -> dict[str, Array]:
        if not self.settings.tune:
            return self._scheduled(step)
        spread = jax.nn.softplus(params["hyper"]["spread"])
        named = dict(zip(self.hypers.names, spread, strict=True))
        told = self.hypers.values(params["hyper"]["center"])
        return told | {f"spread_{name}": value for name, value in named.items()}


def _micro(batch: Batch, count: int) -> list[dict[str, Array]]:
    """Returns `count` batches of a batch; row i goes to number i % count, so that every device
    keeps its own.
    """
    rows = next(iter(batch.values())).shape[0]
    if rows % count:
        raise UserError(
            f"{rows} rows of a batch cannot be shared by {count} steps; see method.train_steps, "
            "method.valid_steps and data.held_every"
        )
    return [{name: x[index::count] for name, x in batch.items()} for index in range(count)]
