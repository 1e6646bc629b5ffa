"""Linear probe trained by LARS, as masked autoencoders are measured.

A batch normalisation without parameters, then one linear map; no weight decay, a warm-up and a
cosine. Sources: MAE (arXiv 2111.06377), appendix A.1, and github.com/facebookresearch/mae,
main_linprobe.py. `metrics.probe` has the closed form, which needs no such settings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax.errors import UserError

Array = jax.Array

_EPSILON, _MOVED = 1e-6, 0.1


class Protocol(NamedTuple):
    """How the probe is trained; the defaults are those of MAE on ImageNet.

    rate    learning rate per 256 examples of a batch
    batch   examples of a step; 16384 on ImageNet. The whole training moves the weights in
            proportion to rate times examples seen, whatever the batch: a small set needs a higher
            rate
    warmup  epochs in which the rate rises from 0
    """

    batch: int = 16_384
    epochs: int = 90
    warmup: int = 10
    rate: float = 0.1
    momentum: float = 0.9
    trust: float = 0.001


class Probe(NamedTuple):
    """One probe per layer, their weights along a leading axis.

    params    {"kernel": [layers, D, classes], "bias": [layers, classes]}
    mean      [layers, D] running mean of the features, and `variance`, unbiased
    momentum  of the optimizer
    step      how many were taken
    """

    params: Any
    mean: Array
    variance: Array
    momentum: Any
    step: Array


def create(key: Array, layers: int, size: int, classes: int, protocol: Protocol) -> Probe:
    """Returns the probes before training: weights of N(0, 0.01^2), no two layers' alike."""
    kernel = 0.01 * jax.random.truncated_normal(key, -200.0, 200.0, (layers, size, classes))
    params = {"kernel": kernel, "bias": jnp.zeros((layers, classes))}
    zeros = jnp.zeros((layers, size))
    momentum = jax.vmap(_direction(protocol).init)(params)
    return Probe(params, zeros, zeros + 1.0, momentum, jnp.int32(0))


def learning_rate(step: Array, per_epoch: int, protocol: Protocol) -> Array:
    """Returns the rate of a step: up by equal parts in the warm-up, then half a cosine to 0."""
    peak = protocol.rate * protocol.batch / 256.0
    epoch = step / per_epoch
    share = (epoch - protocol.warmup) / (protocol.epochs - protocol.warmup)
    rising = epoch / max(protocol.warmup, 1)
    falling = 0.5 * (1.0 + jnp.cos(math.pi * share))
    return peak * jnp.where(epoch < protocol.warmup, rising, falling)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def train_step(
    probe: Probe, features: Array, labels: Array, per_epoch: int, protocol: Protocol
) -> tuple[Probe, Array]:
    """Returns the probes after one step, and the loss of each layer [layers].

    features: [layers, B, D] of B >= 2 examples, labels: int [B]
    """
    features = features.astype(jnp.float32)
    tx, rate = _direction(protocol), learning_rate(probe.step, per_epoch, protocol)

    def one(params: Any, mean: Array, variance: Array, momentum: Any, x: Array) -> Any:
        own, spread = x.mean(0), x.var(0)
        seen = (x - own) * jax.lax.rsqrt(spread + _EPSILON)
        loss, grads = jax.value_and_grad(_loss)(params, seen, labels)
        updates, momentum = tx.update(grads, momentum, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        unbiased = spread * (len(x) / (len(x) - 1))
        mean = (1 - _MOVED) * mean + _MOVED * own
        variance = (1 - _MOVED) * variance + _MOVED * unbiased
        return params, mean, variance, momentum, loss

    params, mean, variance, momentum, losses = jax.vmap(one)(*probe[:4], features)
    return Probe(params, mean, variance, momentum, probe.step + 1), losses


@jax.jit
def hits(probe: Probe, features: Array, labels: Array, mask: Array) -> Array:
    """Returns how many labels are the likeliest class, and among the five likeliest: [layers, 2].

    features: [layers, B, D], labels: int [B], mask: [B], 0 for rows that do not count
    """

    def one(params: Any, mean: Array, variance: Array, x: Array) -> Array:
        seen = (x - mean) * jax.lax.rsqrt(variance + _EPSILON)
        logits = _logits(params, seen)
        own = jnp.take_along_axis(logits, labels[:, None], 1)
        # Of equal logits the first class counts as the likelier; what is no number is never right.
        before = jnp.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > own) | ((logits == own) & before)).sum(1)
        counted = mask * jnp.isfinite(logits).all(1)
        return jnp.stack([((rank < k) * counted).sum() for k in (1, 5)])

    return jax.vmap(one)(*probe[:3], features.astype(jnp.float32))


def check(protocol: Protocol, examples: int) -> Protocol:
    """Returns the protocol with no more examples in a batch than there are.

    Raises UserError for settings that train nothing.
    """
    if examples < 2 or protocol.batch < 2:
        raise UserError(f"probe of {examples} examples, batch={protocol.batch}: legal: 2 and more")
    if not 0 <= protocol.warmup < protocol.epochs or protocol.rate <= 0:
        raise UserError(
            f"probe epochs={protocol.epochs}, warmup={protocol.warmup}, rate={protocol.rate}: "
            "legal: a warm-up shorter than the whole, and a positive rate"
        )
    return protocol._replace(batch=min(protocol.batch, examples))


def fit(
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    examples: int,
    classes: int,
    protocol: Protocol,
    seed: int = 0,
    shown: Callable[[range], Iterable[int]] = iter,
) -> Probe:
    """Returns probes trained on `examples` examples.

    read   example numbers [B] -> (features [layers, B, D], labels int [B])
    shown  given the epochs, yields them, such as a bar of progress does
    Each epoch is in another order; the examples that fill no batch are left out of it. Raises as
    `check` does, UserError for a loss that is not finite, and ValueError where features and
    labels differ in number.
    """
    protocol = check(protocol, examples)
    per_epoch, rng, probe = examples // protocol.batch, np.random.default_rng(seed), None
    for _ in shown(range(protocol.epochs)):
        order = rng.permutation(examples)
        for start in range(0, per_epoch * protocol.batch, protocol.batch):
            features, labels = read(order[start : start + protocol.batch])
            if np.ndim(features) != 3 or np.shape(labels) != np.shape(features)[1:2]:
                raise ValueError(f"labels {np.shape(labels)} for features {np.shape(features)}")
            if probe is None:
                layers, _, size = np.shape(features)
                probe = create(jax.random.key(seed), layers, size, classes, protocol)
            probe, losses = train_step(probe, features, labels, per_epoch, protocol)
        if not np.isfinite(losses).all():
            raise UserError(
                f"the loss of the probes is not finite at rate={protocol.rate}; give a lower one"
            )
    assert probe is not None
    return probe


def accuracies(
    probe: Probe, batches: Iterable[tuple[np.ndarray, np.ndarray]], size: int
) -> np.ndarray:
    """Returns the top-1 and top-5 accuracies of every layer, [layers, 2] in [0, 1].

    batches  (features [layers, B, D], labels int [B]), B of at most `size`
    Raises UserError where there are none.
    """
    total, count = np.zeros(2), 0
    for features, labels in batches:
        rows = len(labels)
        padded = np.pad(np.asarray(features), ((0, 0), (0, size - rows), (0, 0)))
        mask = (np.arange(size) < rows).astype(np.float32)
        found = hits(probe, padded, np.pad(labels, (0, size - rows)), mask)
        total, count = total + np.asarray(found, np.float64), count + rows
    if not count:
        raise UserError("test features: 0 rows given, legal: 1 and more")
    return total / count


def _direction(protocol: Protocol) -> optax.GradientTransformation:
    # optax.lars has the rate within the momentum; here, as in MAE, the sum of past steps is scaled
    # by the rate of now. Biases have no trust ratio.
    trust = optax.scale_by_trust_ratio(trust_coefficient=protocol.trust)
    return optax.chain(
        optax.masked(trust, {"kernel": True, "bias": False}), optax.trace(protocol.momentum)
    )


def _logits(params: Any, x: Array) -> Array:
    return jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"]


def _loss(params: Any, x: Array, labels: Array) -> Array:
    logits = _logits(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
