"""Binary codes drawn by BiGR, from classes, mixtures of classes, or texts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from bigr_jax.generate.draws import Draws, KeyDraws, RowDraws
from bigr_jax.generate.guidance import pair
from bigr_jax.generate.masked import Known, MaskedSampling, Steps, sample_masked
from bigr_jax.models.bigr import BiGR
from bigr_jax.nn.embed import Prefix, Text
from bigr_jax.ops.bernoulli import Schedule

Array = jax.Array


def sample_codes(
    net: BiGR,
    variables: Any,
    key: Array,
    labels: Array | Text,
    schedule: Schedule,
    sampling: MaskedSampling,
    known: Known | None = None,
) -> Array:
    """Returns codes, float32 {0, 1} [B, N, K], of classes int [B]; `net.num_classes` is no class.

    A model of texts takes a `Text` in place of the classes; an empty one is no text. Arguments as
    those of `sample_conditioned`.
    """
    condition: Any = net.apply(variables, labels, method="condition")
    return sample_conditioned(net, variables, key, condition, schedule, sampling, known)


def sample_conditioned(
    net: BiGR,
    variables: Any,
    key: Array,
    condition: Array | Prefix,
    schedule: Schedule,
    sampling: MaskedSampling,
    known: Known | None = None,
) -> Array:
    """Returns codes, float32 {0, 1} [B, N, K], of embedded conditions.

    A causal model draws token by token, whatever order and number of iterations are asked for.

    key        one for the batch, or one per image [B], of which an image then depends alone
    condition  of `BiGR.condition`; of classes, float32 [B, 1, D], also mixtures of such
    known      tokens that are given and stay as they are
    """
    if net.causal:
        one_by_one: Any = {"order": "raster", "remaining": "linear", "iterations": net.length}
        sampling = dataclasses.replace(sampling, **one_by_one)
    rows = len(jax.tree.leaves(condition)[0])
    model, shape = net.bind(variables), (rows, net.length, net.bits)
    if sampling.guided:
        condition = jax.tree.map(pair, condition, model.condition(net.null(rows)))
    draws: Draws = RowDraws(key, shape[1:]) if key.ndim else KeyDraws(key, shape)
    return sample_masked(
        steps(model, condition), draws, schedule, sampling, target=net.target, known=known
    ).bits


def steps(model: BiGR, condition: Any) -> Steps:
    """Returns a bound model under a condition (`BiGR.condition`), as the sampler sees it.

    What it gives for a hidden vector is already what the denoiser makes of it before any step.
    """
    denoiser = model.denoiser
    return Steps(
        lambda bits, mask: denoiser.project(model.hidden(bits, condition, mask)),
        lambda x_t, t, projected: denoiser.step(x_t, t - 1, projected),
    )
