"""Learning rate as a function of the step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from bigr_jax.errors import UserError, one_of

NAMES = ("constant", "cosine", "linear", "rsqrt")
# Names with what follows a colon.
FORMS = ("steps:FACTOR:DURATION,DURATION,...", "restarts:DURATION")


def make(
    section: Any, total_steps: int, resolve: Callable[[str, str], int], key: str = "optimizer"
) -> optax.Schedule:
    """Returns step -> learning rate: from 0 to `lr` over the warm-up, then `section.schedule`.

    section      fields `lr`, `schedule`, `warmup` and `cooldown` (durations), and `end_lr` (a
                 fraction of `lr`)
    total_steps  as many as `cooldown` before it cosine and linear arrive at `lr * end_lr`, and stay
    resolve      (duration, key) -> steps

    With w warm-up steps, rsqrt is lr * max(end_lr, sqrt(w / step)) from step w on (Vaswani 2017,
    eq. 3), with w = 1 where there is no warm-up. "steps:0.1:40 epochs,80 epochs" takes a tenth of
    the rate after each of these times, down to `lr * end_lr`; "restarts:10 epochs" is a cosine from
    `lr` to `lr * end_lr` over and over (Loshchilov 2017, arXiv 1608.03983). Raises UserError for an
    unknown name and for values that make no schedule.
    """
    name, _, argument = section.schedule.partition(":")
    forms = [form for form in FORMS if form.partition(":")[0] == name]
    if section.schedule not in NAMES and not (forms and argument):
        raise one_of(f"{key}.schedule", section.schedule, (*NAMES, *FORMS))
    if section.lr < 0:
        raise UserError(f"{key}.lr={section.lr} must not be negative")
    if not 0 <= section.end_lr <= 1:
        raise UserError(f"{key}.end_lr={section.end_lr} is a fraction of lr: from 0 to 1")
    warmup = resolve(section.warmup, f"{key}.warmup")
    if not 0 <= warmup < total_steps:
        raise UserError(
            f"{key}.warmup={section.warmup!r} is {warmup} steps; "
            f"legal: from 0 to fewer than the {total_steps} steps of the run"
        )
    cooldown = resolve(section.cooldown, f"{key}.cooldown")
    if not 0 <= cooldown < total_steps - warmup:
        raise UserError(
            f"{key}.cooldown={section.cooldown!r} is {cooldown} steps; legal: from 0 to fewer than "
            f"the {total_steps - warmup} after the warm-up"
        )
    if name == "steps":
        after = _steps(section, argument, warmup, resolve, f"{key}.schedule")
    elif name == "restarts":
        after = _restarts(section, resolve(argument, f"{key}.schedule"), f"{key}.schedule")
    else:
        after = _after_warmup(section, total_steps - warmup - cooldown, warmup)
    if warmup == 0:
        return after
    rising = optax.linear_schedule(0.0, section.lr, warmup)
    return optax.join_schedules([rising, after], [warmup])


def _after_warmup(section: Any, steps: int, warmup: int) -> optax.Schedule:
    lr, end = section.lr, section.end_lr
    if section.schedule == "cosine":
        return optax.cosine_decay_schedule(lr, steps, alpha=end)
    if section.schedule == "linear":
        return optax.linear_schedule(lr, lr * end, steps)
    if section.schedule == "rsqrt":
        knee = max(warmup, 1)
        return lambda step: lr * jnp.maximum(end, jnp.sqrt(knee / jnp.maximum(step + warmup, 1)))
    return optax.constant_schedule(lr)


def _steps(
    section: Any, argument: str, warmup: int, resolve: Callable[[str, str], int], key: str
) -> optax.Schedule:
    first, _, listed = argument.partition(":")
    try:
        factor = float(first)
    except ValueError:
        factor = -1.0
    times = [resolve(text.strip(), key) - warmup for text in listed.split(",") if text.strip()]
    rising = all(one < other for one, other in itertools.pairwise([0, *times]))
    if not 0 < factor <= 1 or not times or not rising:
        raise UserError(
            f"{key}={section.schedule!r}: legal is {FORMS[0]}, a factor in (0, 1] and times that "
            "rise, all after the warm-up"
        )
    falling = optax.piecewise_constant_schedule(section.lr, dict.fromkeys(times, factor))
    return lambda step: jnp.maximum(falling(step), section.lr * section.end_lr)


def _restarts(section: Any, period: int, key: str) -> optax.Schedule:
    if period < 1:
        raise UserError(f"{key}={section.schedule!r}: a period of {period} steps; legal: 1 or more")
    falling = optax.cosine_decay_schedule(section.lr, period, alpha=section.end_lr)
    return lambda step: falling(step % period)
