"""A whole guided generation against numbers of the official implementation, on recorded draws.

The arrays sample/* of `bigr_transformer_small.npz`: 2 images of 64 tokens, 4 iterations of 5
denoising steps, guidance and Gumbel noise that change with the iteration.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.generate.bernoulli import denoise_bits, predict_bits
from bigr_jax.generate.draws import RecordedDraws
from bigr_jax.generate.guidance import pair, twice
from bigr_jax.generate.masked import MaskedSampling, Steps, sample_masked
from bigr_jax.interop.torch import from_torch
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import make_schedule, posterior, sampling_times

ATOL = 1e-4
PACK = Path(__file__).with_name("bigr_transformer_small.npz")


def load():
    with np.load(PACK) as arrays:
        kept = {name: arrays[name] for name in arrays if name.startswith(("state/", "sample/"))}
        return kept, json.loads(bytes(arrays["meta_json"]))


ARRAYS, META = load()
CONFIG, GIVEN = META["config"], META["sample_kw"]
SCHEDULE = make_schedule("linear", CONFIG["n_sample_steps"])
SAMPLING = MaskedSampling(
    iterations=GIVEN["num_iter"],
    denoise_steps=CONFIG["infer_steps"],
    cfg_scale=GIVEN["cfg_scale"],
    cfg_schedule=GIVEN["cfg_schedule"],
    gumbel_temperature=GIVEN["gumbel_temp"],
    gumbel_schedule=GIVEN["gumbel_schedule"],
)
TIMES = sampling_times(SCHEDULE.total, SAMPLING.denoise_steps)


def recorded(name):
    return jnp.asarray(ARRAYS[f"sample/{name}"])


@pytest.fixture(scope="module")
def model():
    side = round(CONFIG["seq_len"] ** 0.5)
    return BiGR(
        depth=CONFIG["n_layer"],
        width=CONFIG["dim"],
        heads=CONFIG["n_head"],
        bits=CONFIG["binary_size"],
        grid=(side, side),
        num_classes=CONFIG["num_classes"],
        head_width=CONFIG["denoise_hidden_dim"],
        head_blocks=CONFIG["num_block_mlp"],
    )


@pytest.fixture(scope="module")
def variables(model):
    prefix = "state/"
    state = {name.removeprefix(prefix): a for name, a in ARRAYS.items() if name.startswith(prefix)}
    return from_torch(model, state)


def steps(model, variables):
    labels = recorded("labels")
    labels = pair(labels, jnp.full_like(labels, CONFIG["num_classes"]))
    condition = model.apply(variables, labels, method="condition")
    return Steps(
        lambda bits, mask: model.apply(variables, bits, condition, mask, method="hidden"),
        lambda x_t, t, hidden: model.apply(variables, x_t, t, hidden, method="denoise"),
    )


@pytest.mark.parametrize("compact", [True, False])
def test_generation(model, variables, compact):
    draws = RecordedDraws(
        jnp.concatenate([recorded("u_init")[:, None], recorded("u_post")], axis=1),
        recorded("gumbel"),
        recorded("u_unmask"),
    )
    run = jax.jit(
        lambda variables: sample_masked(
            steps(model, variables), draws, SCHEDULE, SAMPLING, compact=compact, block=4
        )
    )
    found = run(variables)
    np.testing.assert_array_equal(found.bits, ARRAYS["sample/bits"])
    for i in range(SAMPLING.iterations):
        np.testing.assert_array_equal(found.iteration == i, ARRAYS["sample/unmasked_now"][i])
        before = ARRAYS["sample/mask_before"][i]
        np.testing.assert_array_equal(found.iteration >= i, before)
        sequence = np.where(before[..., None], 0.0, found.bits)
        np.testing.assert_array_equal(sequence, ARRAYS["sample/seq_before"][i])


def test_every_probability(model, variables):
    """The posteriors of all denoising steps, and what the transcoder returns, in each iteration."""

    @jax.jit
    def iteration(variables, bits, mask, guidance, uniforms, posteriors):
        hidden, denoise = steps(model, variables)
        condition = hidden(twice(bits), twice(mask))
        p = denoise_bits(
            denoise,
            condition,
            lambda step: uniforms[step],
            SCHEDULE,
            TIMES,
            guidance=guidance,
        )
        drawn = (uniforms < jnp.concatenate([jnp.full_like(p, 0.5)[None], posteriors])) * 1.0
        seen = []
        for i in range(len(TIMES) - 1):
            p_x0 = predict_bits(denoise, drawn[i], TIMES[i], condition, guidance=guidance)
            seen.append(posterior(drawn[i], p_x0, TIMES[i], TIMES[i + 1], SCHEDULE))
        return p, jnp.stack(seen)

    for i in range(SAMPLING.iterations):
        guidance = 1.0 + (GIVEN["cfg_scale"] - 1.0) * (i + 1) / SAMPLING.iterations
        p, posteriors = iteration(
            variables,
            recorded("seq_before")[i],
            recorded("mask_before")[i],
            guidance,
            jnp.concatenate([recorded("u_init")[i][None], recorded("u_post")[i]]),
            recorded("p_post")[i],
        )
        np.testing.assert_allclose(p, ARRAYS["sample/pred"][i], rtol=0, atol=ATOL)
        np.testing.assert_allclose(posteriors, ARRAYS["sample/p_post"][i], rtol=0, atol=ATOL)
