"""The transcoder's objective: which bits its logits predict, and how their errors are weighted.

Source: BiGR (arXiv 2410.14672), "Binary transcoder", and its official implementation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigr_jax.errors import UserError, one_of
from bigr_jax.ops.bernoulli import TARGETS, Schedule, bit_probability, posterior, q_sample

Array = jax.Array

LOSSES = ("weighted", "focal", "bce")


@dataclasses.dataclass(frozen=True)
class BitObjective:
    """The choices of the objective; every one is an axis of the paper's ablations or of its code.

    Attributes:
      target: "flip" predicts x_0 XOR x_t (published models), "z0" predicts x_0 from x_t, "direct"
        predicts x_0 from pure noise: a diffusion of a single time.
      loss: "weighted" balances the ones and zeros of every token (published models), "focal" also
        multiplies by (1 - p)^gamma, p the probability of the right answer; "bce" weights nothing,
        as the official code does wherever it predicts z0.
      gamma: exponent of "focal".
      alpha: what "focal" weights ones by, zeros by 1 - alpha; 0 for no weights, None for the
        balance of "weighted".
      aux: weight of the variational bound's term, the cross entropy between q(x_{t-1} | x_t, x_0)
        with the true and with the predicted x_0, at t = 1 that of x_0; published models: 0.

    Raises UserError for an unknown name and a number that is out of range.
    """

    target: str = "flip"
    loss: str = "weighted"
    gamma: float = 0.0
    alpha: float | None = None
    aux: float = 0.0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise one_of("target", self.target, TARGETS)
        if self.loss not in LOSSES:
            raise one_of("objective.loss", self.loss, LOSSES)
        for field in ("gamma", "aux"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(f"objective.{field}={getattr(self, field)}: legal: 0 and more")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UserError(f"objective.alpha={self.alpha}: legal: None, or from 0 to 1")


class BitLoss(NamedTuple):
    """What the objective gives: two scalars and their parts.

    loss      the mean over the bits of the masked tokens, float32 scalar
    accuracy  the share of those bits whose x_0 is predicted right, float32 scalar
    per_bit   that of every bit, masked or not, [..., K]
    """

    loss: Array
    accuracy: Array
    per_bit: Array


def draw(key: Array, bits: Array, schedule: Schedule, target: str) -> tuple[Array, Array]:
    """Draws what the denoiser is to be trained on: a time for every token and its noisy bits.

    bits: {0, 1} [..., K] -> t int32 [...], uniform on 1 ... T, and x_t float32 {0, 1} [..., K].

    Raises:
      UserError: an unknown target.
      ValueError: "direct" with a schedule of more than one time.
    """
    if target not in TARGETS:
        raise one_of("target", target, TARGETS)
    if target == "direct" and schedule.total != 1:
        raise ValueError(f"target 'direct' needs a schedule of one time, got {schedule.total}")
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, bits.shape[:-1], 1, schedule.total + 1)
    return t, q_sample(noise_key, bits, t, schedule)


def balance_weights(y: Array) -> Array:
    """Returns weights that balance the ones of each token against its zeros.

    y: {0, 1} [..., K] -> (1 - r) y + r (1 - y) + 1 / K, r the share of ones among the K. The 1 / K
    keeps alive a token whose bits are all equal.
    """
    r = y.mean(axis=-1, keepdims=True)
    return (1.0 - r) * y + r * (1.0 - y) + 1.0 / y.shape[-1]


def bound(
    logits: Array, bits: Array, x_t: Array, t: Array, schedule: Schedule, target: str
) -> Array:
    """Returns an unbiased estimate of a bound on the code length, -log2 P(x_0), in bits [..., K].

    logits: [..., K], as `target` says; bits and x_t: {0, 1} [..., K]; t: int [...], drawn uniformly
    from 1 ... T. It is T times KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), the variational
    bound, which for T = 1 is the code length itself; x_T says nothing of x_0.
    Source: the variational bound of Binary Latent Diffusion (arXiv 2304.04820).
    """
    logits, bits, x_t = (a.astype(jnp.float32) for a in (logits, bits, x_t))
    y = jnp.abs(bits - x_t) if target == "flip" else bits
    cross = _bound_term(logits, y, bits, x_t, t, schedule, target)
    # At t = 1 the posterior is x_0 itself, without entropy.
    true = posterior(x_t, bits, t, t - 1, schedule)
    entropy = jax.scipy.special.entr(true) + jax.scipy.special.entr(1.0 - true)
    return schedule.total * (cross - entropy) / math.log(2)


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Returns the mean of values [..., K] over the tokens with mask [...] = 1, if any, else 0."""
    if mask is None:
        return values.mean()
    weight = mask.astype(jnp.float32)
    count = weight.sum() * values.shape[-1]
    return (values * weight[..., None]).sum() / jnp.where(count > 0, count, 1.0)


def transcoder_loss(
    logits: Array,
    bits: Array,
    x_t: Array,
    t: Array,
    schedule: Schedule,
    mask: Array | None = None,
    objective: BitObjective | None = None,
) -> BitLoss:
    """Compares the denoiser's logits with the bits that they should give.

    logits: [..., K], of P(flip) or of P(x_0 = 1) as the target says; bits and x_t: {0, 1} [..., K];
    t: int [...] in 1 ... T; mask: [...], the tokens that count, None for all; objective: None for
    the published one.
    """
    objective = objective or BitObjective()
    logits, bits, x_t = (a.astype(jnp.float32) for a in (logits, bits, x_t))
    y = jnp.abs(bits - x_t) if objective.target == "flip" else bits
    per_bit = _weights(logits, y, objective) * optax.sigmoid_binary_cross_entropy(logits, y)
    if objective.aux:
        bound = _bound_term(logits, y, bits, x_t, t, schedule, objective.target)
        per_bit = per_bit + objective.aux * bound
    right = ((logits > 0) == (y > 0.5)).astype(jnp.float32)
    return BitLoss(masked_mean(per_bit, mask), masked_mean(right, mask), per_bit)


def _weights(logits: Array, y: Array, objective: BitObjective) -> Array | float:
    if objective.loss == "bce":
        return 1.0
    if objective.loss == "weighted":
        return balance_weights(y)
    p = jax.nn.sigmoid(logits)
    wrong = 1.0 - (p * y + (1.0 - p) * (1.0 - y))
    focus = jnp.clip(wrong, 1e-6, 1.0 - 1e-6) ** objective.gamma
    if objective.alpha is None:
        return focus * balance_weights(y)
    if objective.alpha == 0:
        return focus
    return focus * (objective.alpha * y + (1.0 - objective.alpha) * (1.0 - y))


def _bound_term(
    logits: Array, y: Array, bits: Array, x_t: Array, t: Array, schedule: Schedule, target: str
) -> Array:
    first = optax.sigmoid_binary_cross_entropy(logits, y)
    if schedule.total == 1:
        return first
    p_x0 = bit_probability(logits, x_t, target)
    # The posterior at t = 1 is x_0 itself and may be an exact 0 or 1, whose logarithm would leak
    # into the gradient of the branch that is not taken.
    t_safe = jnp.maximum(t, 2)
    predicted = posterior(x_t, p_x0, t_safe, t_safe - 1, schedule)
    true = posterior(x_t, bits, t_safe, t_safe - 1, schedule)
    cross = -true * jnp.log(predicted) - (1.0 - true) * jnp.log1p(-predicted)
    return jnp.where((t == 1)[..., None], first, cross)
