"""Binary codes drawn by BiGR, class by class."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigr_jax.generate.draws import KeyDraws
from bigr_jax.generate.guidance import pair
from bigr_jax.generate.masked import Known, MaskedSampling, Steps, sample_masked
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import Schedule

Array = jax.Array


def sample_codes(
    net: BiGR,
    variables: Any,
    key: Array,
    labels: Array,
    schedule: Schedule,
    sampling: MaskedSampling,
    known: Known | None = None,
) -> Array:
    """Returns codes, float32 {0, 1} [B, N, K], of classes int [B]; `net.num_classes` is no class.

    A causal model draws token by token, whatever order and number of iterations are asked for.
    known  tokens that are given and stay as they are
    """
    if net.causal:
        one_by_one: Any = {"order": "raster", "remaining": "linear", "iterations": net.length}
        sampling = dataclasses.replace(sampling, **one_by_one)
    model = net.bind(variables)
    condition = model.condition(labels)
    if sampling.guided:
        null = jnp.full_like(labels, net.num_classes)
        condition = pair(condition, model.condition(null))
    steps = Steps(lambda bits, mask: model.hidden(bits, condition, mask), model.denoise)
    draws = KeyDraws(key, (len(labels), net.length, net.bits))
    return sample_masked(steps, draws, schedule, sampling, target=net.target, known=known).bits
