"""Learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from bigr_jax.errors import UserError, one_of

NAMES = ("constant", "cosine", "linear", "rsqrt")


def make(
    section: Any, total_steps: int, resolve: Callable[[str, str], int], key: str = "optimizer"
) -> optax.Schedule:
    """Returns step -> learning rate: from 0 to `lr` over the warm-up, then `section.schedule`.

    section      fields `lr`, `schedule`, `warmup` and `cooldown` (durations), and `end_lr` (a
                 fraction of `lr`)
    total_steps  as many as `cooldown` before it cosine and linear arrive at `lr * end_lr`, and stay
    resolve      (duration, key) -> steps

    With w warm-up steps, rsqrt is lr * max(end_lr, sqrt(w / step)) from step w on (Vaswani 2017,
    eq. 3), with w = 1 where there is no warm-up. Raises UserError for an unknown name and for
    values that make no schedule.
    """
    if section.schedule not in NAMES:
        raise one_of(f"{key}.schedule", section.schedule, NAMES)
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
