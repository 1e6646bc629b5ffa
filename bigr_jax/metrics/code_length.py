"""How many bits a model of binary codes needs to tell an image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bigr_jax.losses.bits import bound, draw
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import Schedule
from bigr_jax.ops.masking import uniform_mask

Array = jax.Array


def code_length(
    net: BiGR, variables: Any, key: Array, codes: Array, labels: Array, schedule: Schedule
) -> Array:
    """Returns an unbiased estimate of a bound on -log2 P(codes | label), in bits per image [B].

    codes: {0, 1} [B, N, K], labels: int [B]. The tokens are told in an order drawn at random, one
    at a time, of which one step stands for all N: with n tokens left, n uniform on 1 ... N, their
    code lengths count N / n times. A causal model tells them in its own order, all at once. Within
    a token it is the bound of `losses.bits.bound`, exact for the target "direct".
    Source: Autoregressive Diffusion Models (arXiv 2110.02037), their bound on the likelihood.
    """
    mask_key, draw_key = jax.random.split(key)
    mask = uniform_mask(mask_key, *codes.shape[:2])
    if net.causal:
        mask = jnp.ones_like(mask)
    t, x_t = draw(draw_key, codes, schedule, net.target)
    logits: Any = net.apply(variables, codes, labels, mask, x_t, t)
    bits = bound(logits, codes, x_t, t, schedule, net.target).sum(-1)
    return net.length * (bits * mask).sum(-1) / mask.sum(-1)
