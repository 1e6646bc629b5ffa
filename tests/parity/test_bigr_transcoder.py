"""The transcoder against numbers of the official implementation.

`bigr_transcoder_small.npz` holds random weights, inputs and results of the PyTorch code: schedules,
network, every form of the loss, posteriors and guided sampling on recorded uniforms.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.generate.bernoulli import denoise_bits, predict_bits
from bigr_jax.generate.guidance import pair
from bigr_jax.losses.bits import BitObjective, transcoder_loss
from bigr_jax.models.transcoder import Denoiser, DenoiserBlock, time_features
from bigr_jax.ops.bernoulli import make_schedule, posterior, q_probability, sampling_times

ATOL = 1e-4
PACK = Path(__file__).with_name("bigr_transcoder_small.npz")
NAMES = {
    "x_embedder": "bits_in",
    "c_embedder": "condition_in",
    "t_embedder.mlp.0": "time_in",
    "t_embedder.mlp.2": "time_out",
    "final_layer.linear": "out",
    "final_layer.adaLN_modulation.1": "out_modulation",
}
BLOCK_NAMES = {"mlp.0": "mlp_in", "mlp.2": "mlp_out", "adaLN_modulation.1": "modulation"}


def load():
    with np.load(PACK) as arrays:
        return dict(arrays)


ARRAYS = load()
META = json.loads(bytes(ARRAYS["meta_json"]))
MODEL = Denoiser(META["in_dim"], META["hidden_dim"], META["num_blocks"])
TIMES = META["T"]
LINEAR = make_schedule("linear", TIMES)


@pytest.fixture(scope="module")
def variables():
    def linear(name):
        weight, bias = ARRAYS[f"state/{name}.weight"], ARRAYS[f"state/{name}.bias"]
        return {"kernel": weight.T, "bias": bias}

    def stacked(name):
        rows = [linear(f"blocks.{i}.{name}") for i in range(META["num_blocks"])]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    params = {ours: linear(theirs) for theirs, ours in NAMES.items()}
    params["layers"] = {ours: stacked(theirs) for theirs, ours in BLOCK_NAMES.items()}
    used = 2 * (len(NAMES) + len(BLOCK_NAMES) * META["num_blocks"])
    assert used == sum(name.startswith("state/") for name in ARRAYS)
    return {"params": params}


def close(ours, name):
    theirs = ARRAYS[name]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL, err_msg=name)


def denoise(variables):
    return lambda x_t, t, condition: MODEL.apply(variables, x_t, t - 1, condition)


@pytest.mark.parametrize("name", ["linear", "cos", "sigmoid"])
@pytest.mark.parametrize("total", [16, 256])
def test_schedules(name, total):
    schedule = make_schedule(name, total)
    for field, theirs in (("k", "k_final"), ("b", "b_final"), ("beta", "beta")):
        close(getattr(schedule, field), f"sched/{name}_{total}/{theirs}")


def test_forward_process():
    close(q_probability(ARRAYS["in/x0"], ARRAYS["in/t"], LINEAR), "out/q_prob")


def test_posteriors():
    x_t, p_x0 = ARRAYS["in/x_t"], ARRAYS["post/p_x0"]
    for i, (t, s) in enumerate(ARRAYS["post/pairs"]):
        close(posterior(x_t, p_x0, t, s, LINEAR), f"post/{i}")


def test_network(variables):
    @jax.jit
    def run(variables, x_t, t, conditional, null):
        def call(method, *args):
            return MODEL.apply(variables, *args, method=method)

        embedding = call("time_embedding", t)
        h = call(lambda model, x: model.bits_in(x), 2.0 * x_t - 1.0)
        first = {"params": jax.tree.map(lambda leaf: leaf[0], variables["params"]["layers"])}
        modulator = jax.nn.silu(call("project", conditional) + embedding)
        return {
            "out/time_features": time_features(t),
            "out/t_emb": embedding,
            "out/logits": call("__call__", x_t, t, conditional),
            "out/logits_uncond": call("__call__", x_t, t, null),
            "out/block0": DenoiserBlock(META["hidden_dim"]).apply(first, h, modulator)[0],
        }

    names = ("x_t", "t", "cond", "uncond")
    x_t, t, conditional, null = (ARRAYS[f"in/{name}"] for name in names)
    for name, ours in run(variables, x_t, t - 1, conditional, null).items():
        close(ours, name)


@pytest.mark.parametrize("variant", META["variants"])
def test_losses(variant):
    flip, gamma, alpha, aux = META["variants"][variant]
    # In the official code plain cross entropy is a negative gamma, or a gamma of 0 under z0; and
    # alpha = -1 is the balance within a token.
    plain = gamma < 0 or not flip
    objective = BitObjective(
        target="flip" if flip else "z0",
        loss="bce" if plain else "focal",
        gamma=max(gamma, 0.0),
        alpha=None if alpha < 0 else alpha,
        aux=aux,
    )
    inputs = [jnp.asarray(ARRAYS[f"in/{name}"]) for name in ("x0", "x_t", "t")]
    found = transcoder_loss(ARRAYS["out/logits"], *inputs, LINEAR, None, objective)
    close(found.per_bit, f"loss/{variant}/loss_all")
    close(found.loss, f"loss/{variant}/loss")
    close(found.accuracy, f"loss/{variant}/acc")
    if aux:
        without = transcoder_loss(ARRAYS["out/logits"], *inputs, LINEAR)
        close((found.loss - without.loss) / aux, f"loss/{variant}/aux")
        close(without.loss, "loss/official/loss")


@pytest.mark.parametrize("target", ["flip", "z0"])
@pytest.mark.parametrize("name", META["sample"])
def test_guided_sampling(variables, name, target):
    given = META["sample"][name]
    prefix = f"sample/{name}_{target}"
    u, times = ARRAYS[f"{prefix}/u"], sampling_times(TIMES, given["sample_steps"])
    np.testing.assert_array_equal(times, ARRAYS[f"{prefix}/steps"])
    options = {
        "target": target,
        "guidance": given["cfg_scale"],
        "temperature": given["temp"],
    }
    condition = pair(ARRAYS["in/cond"], ARRAYS["in/uncond"])
    run = jax.jit(
        lambda variables: denoise_bits(
            denoise(variables),
            condition,
            lambda step: jnp.asarray(u)[step],
            LINEAR,
            times,
            **options,
        )
    )
    close(run(variables), f"{prefix}/prob_x0")
    if f"{prefix}/p" in ARRAYS:
        recorded = ARRAYS[f"{prefix}/p"]
        np.testing.assert_array_equal(recorded[0], 0.5)

        @jax.jit
        def chance(variables, x_t, t, s):
            p = predict_bits(denoise(variables), x_t, t, condition, **options)
            return posterior(x_t, p, t, s, LINEAR)

        for i, (t, s) in enumerate(itertools.pairwise(times)):
            ours = chance(variables, (u[i] < recorded[i]).astype(np.float32), t, s)
            np.testing.assert_allclose(ours, recorded[i + 1], rtol=0, atol=ATOL)


def test_without_guidance_only_the_condition_matters(variables):
    # The recorded scale of 1 is the conditional branch alone.
    given = META["sample"]["s100"]
    assert given["cfg_scale"] == 1.0
    u = ARRAYS["sample/s100_flip/u"]
    times = sampling_times(TIMES, given["sample_steps"])
    run = jax.jit(
        lambda variables: denoise_bits(
            denoise(variables),
            jnp.asarray(ARRAYS["in/cond"]),
            lambda step: jnp.asarray(u)[step],
            LINEAR,
            times,
            temperature=given["temp"],
        )
    )
    close(run(variables), "sample/s100_flip/prob_x0")
