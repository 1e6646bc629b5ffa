"""Optimizers of the trainer, all from optax: clip, core, decay, per-parameter rates, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from optax import contrib

from bigr_jax.errors import UserError, one_of
from bigr_jax.train import patterns, schedules
from bigr_jax.train.muon import is_masked, scale_by_muon

NAMES = ("adamw", "adam", "lion", "muon", "schedule_free", "sgd", "sgd_l2")


def make(
    section: Any,
    total_steps: int,
    params: Any,
    resolve: Callable[[str, str], int],
    key: str = "optimizer",
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer of a config section, and its schedule (step -> learning rate).

    section  `name`, `lr`, `schedule`, `warmup`, `end_lr` (see schedules.py), `b1`, `b2`, `eps`,
             `weight_decay`, `clip` (global norm, 0: off), `decay_skip` (regular expressions over
             paths: no decay), `lr_multipliers` ((regular expression, factor) pairs, first match)
    params   arrays or ShapeDtypeStructs, in linen's boxes for muon, which reads off the axis names
             what is a matrix; the optimizer itself acts on the unboxed tree
    resolve  (duration, key) -> steps

    Weight decay is decoupled and multiplied by the learning rate (Loshchilov 2019, as in
    torch.optim.AdamW), but for sgd_l2, where it is a part of the gradient that momentum adds up, as
    in torch.optim.SGD. A factor of 0 freezes: no update, no optimizer state, no part in the
    clipped norm. `b1` is the momentum of sgd, sgd_l2 and both halves of muon. Raises UserError for
    an unknown name, a value out of range, and a pattern that matches no parameter.
    """
    _check(section, key)
    schedule = schedules.make(section, total_steps, resolve, key)
    names = patterns.paths(params)

    def like_params(values: list[Any]) -> Any:
        return jax.tree.unflatten(jax.tree.structure(nn.unbox(params)), values)

    skipped = patterns.first_match(section.decay_skip, names, f"{key}.decay_skip")
    decayed = like_params([index is None for index in skipped])
    factors = _factors(section.lr_multipliers, names, f"{key}.lr_multipliers")

    parts = [_core(section, params)]
    if section.weight_decay:
        decay = optax.add_decayed_weights(section.weight_decay, decayed)
        parts.insert(0 if section.name == "sgd_l2" else 1, decay)
    if set(factors) - {0.0, 1.0}:
        parts.append(_scale_each(like_params(factors)))
    parts.append(optax.scale_by_learning_rate(schedule))
    tx = optax.chain(*parts)
    if section.name == "schedule_free":
        tx = contrib.schedule_free(tx, schedule, b1=section.b1)
    if section.clip:
        tx = optax.chain(optax.clip_by_global_norm(section.clip), tx)
    if 0.0 in factors:
        tx = optax.selective_transform(tx, freeze_mask=like_params([f == 0 for f in factors]))
    return tx, schedule


def eval_params(name: str, opt_state: Any, params: Any) -> Any:
    """Returns the parameters to evaluate with: the average of schedule_free, else `params`.

    schedule_free takes gradients at y = (1 - b1) z + b1 x, and x is the average (Defazio 2024).
    """
    if name != "schedule_free":
        return params
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_schedule_free)
    state = next(node for node in nodes if _is_schedule_free(node))

    def average(z: Any, y: Any) -> Any:
        return y if is_masked(z) else (y - (1.0 - state.b1) * z) / state.b1

    return jax.tree.map(average, state.z, params, is_leaf=is_masked)


def _check(section: Any, key: str) -> None:
    if section.name not in NAMES:
        raise one_of(f"{key}.name", section.name, NAMES)
    for field in ("b1", "b2"):
        if not 0 <= getattr(section, field) < 1:
            raise UserError(f"{key}.{field}={getattr(section, field)} must be in [0, 1)")
    for field in ("eps", "weight_decay", "clip"):
        if getattr(section, field) < 0:
            raise UserError(f"{key}.{field}={getattr(section, field)} must not be negative")
    if section.name == "adam" and section.weight_decay:
        raise UserError(
            f"{key}.weight_decay={section.weight_decay} has no place in adam; "
            f"set it to 0 or {key}.name=adamw"
        )
    if section.name == "schedule_free" and section.b1 == 0:
        raise UserError(f"{key}.b1=0 leaves schedule_free nothing to average; legal: (0, 1)")
    if section.name == "schedule_free" and section.schedule != "constant":
        raise UserError(
            f"{key}.schedule={section.schedule!r} with schedule_free, which replaces the decay; "
            f"set {key}.schedule=constant"
        )


def _factors(pairs: Any, names: list[str], key: str) -> list[float]:
    matched = patterns.first_match([pattern for pattern, _ in pairs], names, key)
    for pattern, factor in pairs:
        if not 0 <= factor < math.inf:
            raise UserError(f"{key}: the factor {factor} of {pattern!r} must be 0 or more")
    return [1.0 if index is None else float(pairs[index][1]) for index in matched]


def _scale_each(factors: Any) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        del params

        def times(factor: float, update: Any) -> Any:
            # The update of a frozen parameter is an empty node.
            return jax.tree.map(lambda leaf: factor * leaf, update)

        return jax.tree.map(times, factors, updates)

    return optax.stateless(scale)


def _core(section: Any, params: Any) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=section.b1, b2=section.b2, eps=section.eps)
    if section.name in ("adamw", "adam"):
        return adam
    if section.name == "lion":
        return optax.scale_by_lion(b1=section.b1, b2=section.b2)
    if section.name in ("sgd", "sgd_l2"):
        return optax.trace(section.b1) if section.b1 else optax.identity()
    if section.name == "schedule_free":
        # Adam without its momentum, which the averaging replaces.
        return optax.scale_by_rms(
            decay=section.b2, eps=section.eps, eps_in_sqrt=False, bias_correction=True
        )
    return scale_by_muon(params, section.b1, adam)


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, contrib.ScheduleFreeState)
