"""Diffusion of bits: the noise schedules, the forward process and its posterior.

A bit x_0 is mixed with a fair coin: q(x_t = 1 | x_0) = k_t x_0 + b_t, with b_t = (1 - k_t) / 2, for
times t = 1 ... T; k_0 = 1 and k_T = 0. Everything here is float32. Source: Binary Latent Diffusion
(arXiv 2304.04820), as used by BiGR (arXiv 2410.14672), whose schedule is "linear".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import one_of

Array = jax.Array

TARGETS = ("flip", "z0", "direct")


class Schedule(NamedTuple):
    """The noise at each time, float32 [T + 1]; index 0 is the clean bit.

    k     how much of x_0 is left in x_t
    b     probability that noise alone gives a one, (1 - k) / 2
    beta  how much of x_{t-1} is left in x_t, k_t / k_{t-1}
    """

    k: np.ndarray
    b: np.ndarray
    beta: np.ndarray

    @property
    def total(self) -> int:
        """The number of times T."""
        return len(self.k) - 1


def _sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.asarray(x)))


def _sigmoid_kept(u: np.ndarray) -> np.ndarray:
    end = _sigmoid(3.0 / 0.8)
    return (end - _sigmoid(3.0 * u / 0.8)) / (end - 0.5)


_KEPT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda u: 1.0 - u,
    "cos": lambda u: 0.5 + 0.5 * np.cos(np.pi * u),
    "sigmoid": _sigmoid_kept,
}


def make_schedule(name: str, total: int) -> Schedule:
    """Returns the schedule "linear", "cos" or "sigmoid" of `total` times.

    A single time is the direct prediction of the bits: x_1 is pure noise.

    Raises:
      UserError: an unknown name.
      ValueError: fewer than one time.
    """
    if name not in _KEPT:
        raise one_of("schedule", name, _KEPT)
    if total < 1:
        raise ValueError(f"a diffusion needs at least one time, got total={total}")
    k = _KEPT[name](np.arange(total + 1) / total)
    k[0], k[-1] = 1.0, 0.0
    beta = np.concatenate([[1.0], k[1:] / k[:-1]])
    return Schedule(*(np.asarray(a, np.float32) for a in (k, (1.0 - k) / 2.0, beta)))


def _at(table: np.ndarray, t: Array) -> Array:
    """The schedule's entries for times [...] as [..., 1], ready to meet bits [..., K]."""
    return jnp.asarray(table)[t][..., None]


def q_probability(x_0: Array, t: Array, schedule: Schedule) -> Array:
    """Returns q(x_t = 1 | x_0); x_0 [..., K] (bits or probabilities), t [...] in 0 ... T."""
    return _at(schedule.k, t) * x_0 + _at(schedule.b, t)


def q_sample(key: Array, x_0: Array, t: Array, schedule: Schedule) -> Array:
    """Draws x_t given x_0 [..., K] and t [...] (broadcastable): float32 zeros and ones [..., K]."""
    p = q_probability(x_0, t, schedule)
    return (jax.random.uniform(key, p.shape) < p).astype(jnp.float32)


def posterior(x_t: Array, p_x0: Array, t: Array, s: Array, schedule: Schedule) -> Array:
    """Returns P(x_s = 1 | x_t) for a jump from time t to an earlier s, where x_0 ~ Bernoulli(p_x0).

    p_x0 is what is believed of x_0 before x_t is seen, 0 or 1 where it is known.
    x_t, p_x0: [..., K]; t, s: [...] with 0 <= s < t <= T. With a = q(x_s = 1), r = k_t / k_s and
    l = r x_t + (1 - r) / 2, Bayes' rule gives a l / (a l + (1 - a)(1 - l)): the closed form of
    t - s steps of the chain, whose betas multiply to r.
    """
    a = q_probability(p_x0, s, schedule)
    r = _at(schedule.k, t) / _at(schedule.k, s)
    l_one = r * x_t + (1.0 - r) / 2.0
    one = a * l_one
    return one / (one + (1.0 - a) * (1.0 - l_one))


def unflip(x_t: Array, p_flip: Array) -> Array:
    """Returns P(x_0 = 1) from P(x_0 != x_t), and the reverse: it is its own inverse."""
    return x_t * (1.0 - p_flip) + (1.0 - x_t) * p_flip


def bit_probability(logits: Array, x_t: Array, target: str) -> Array:
    """Returns P(x_0 = 1), float32 [..., K], from logits and the noisy bits x_t [..., K].

    target: what the logits predict: "flip" is x_0 XOR x_t, "z0" is x_0, and "direct" is x_0 where
    x_t is pure noise.

    Raises UserError for an unknown target.
    """
    if target not in TARGETS:
        raise one_of("target", target, TARGETS)
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    return unflip(x_t, p) if target == "flip" else p


def sampling_times(total: int, count: int) -> tuple[int, ...]:
    """Returns `count` times, evenly spread and falling from T = `total` to 1.

    `total` or more of them are all the times; a single one is T itself.

    Raises:
      ValueError: fewer than one time.
    """
    if total < 1 or count < 1:
        raise ValueError(f"needs at least one time, got total={total}, count={count}")
    if count >= total:
        return tuple(range(total, 0, -1))
    if count == 1:
        return (total,)
    rising = (np.linspace(0.0, 1.0, count) * (total - 1)).astype(int) + 1
    return tuple(int(t) for t in rising[::-1])
