"""The binary autoencoder and its discriminator against numbers of the official implementation.

`bigr_tokenizer_small.npz` holds random weights, inputs and results of the PyTorch code (NCHW).
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.interop.torch import from_torch, to_torch
from bigr_jax.losses.adversarial import generator_loss, hinge_discriminator_loss
from bigr_jax.losses.reconstruction import code_variance
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder, decoder_plan, encoder_plan
from bigr_jax.models.patch_discriminator import PatchDiscriminator
from bigr_jax.nn.quantizers import BinaryQuantizer

ATOL = 1e-4
PACK = Path(__file__).with_name("bigr_tokenizer_small.npz")
KINDS = {
    "Conv2d": "conv",
    "ResBlock": "res",
    "AttnBlock": "attention",
    "GroupNorm": "norm",
    "Downsample": "down",
    "Upsample": "up",
}


@pytest.fixture(scope="module")
def pack():
    with np.load(PACK) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def meta(pack):
    return json.loads(bytes(pack["meta_json"]))


@pytest.fixture(scope="module")
def model(meta):
    return BinaryAutoencoder(
        filters=meta["nf"],
        multipliers=tuple(meta["ch_mult"]),
        blocks=meta["res_blocks"],
        attention_resolutions=tuple(meta["attn_resolutions"]),
        embedding=meta["emb_dim"],
        bits=meta["codebook_size"],
        image_size=meta["img_size"],
        norm_first=meta["norm_first"],
    )


@pytest.fixture(scope="module")
def variables(model, pack):
    return from_torch(model, part(pack, "state/"))


@pytest.fixture(scope="module")
def forward(model, variables, pack):
    """One forward pass with deterministic codes, and the output of every block."""

    @jax.jit
    def run(variables, image):
        (image, codes, probabilities), state = model.apply(
            variables, image, capture_intermediates=True, mutable=["intermediates"]
        )
        return {"recon": image, "codes": codes, "prob": probabilities}, state["intermediates"]

    return run(variables, nhwc(pack["in/image"]))


@pytest.fixture(scope="module")
def quantizer(model, variables):
    """The quantiser's methods as functions of its parameters."""
    module = BinaryQuantizer(model.bits, model.embedding)
    params = {"params": variables["params"]["quantizer"]}
    return params, lambda params, *args, method: module.apply(params, *args, method=method)


def part(pack, prefix):
    return {name.removeprefix(prefix): a for name, a in pack.items() if name.startswith(prefix)}


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def close(actual, wanted):
    wanted = nhwc(wanted) if wanted.ndim == 4 else wanted
    np.testing.assert_allclose(np.asarray(actual), wanted, rtol=0, atol=ATOL)


def test_every_array_is_checked(pack):
    rooms = {name.split("/")[0] for name in pack}
    assert rooms == {"state", "in", "out", "trace", "ste", "disc", "disc_out", "meta_json"}
    assert {n for n in pack if n.startswith("out/")} == {f"out/{n}" for n in OUT}
    assert {n.split(".")[0] for n in pack if n.startswith("trace/")} == {
        "trace/encoder",
        "trace/generator",
    }


OUT = ("enc_features", "logits", "prob", "code_det", "z_q", "recon_det", "codebook_loss")


def test_plan_has_the_published_blocks(model, meta):
    wanted = [[KINDS[name] for name in meta[f"{part}_blocks"]] for part in ("encoder", "generator")]
    assert [block.kind for block in encoder_plan(model)] == wanted[0]
    assert [block.kind for block in decoder_plan(model)] == wanted[1]


def test_forward(forward, pack):
    results, _ = forward
    close(results["recon"], pack["out/recon_det"])
    close(results["prob"], pack["out/prob"])
    np.testing.assert_array_equal(results["codes"], nhwc(pack["out/code_det"]))
    close(code_variance(results["prob"]), pack["out/codebook_loss"])


def test_features_logits_and_embedded_codes(forward, quantizer, pack):
    results, seen = forward
    close(seen["encoder"]["__call__"][0], pack["out/enc_features"])
    params, call = quantizer
    logits = call(params, jnp.asarray(nhwc(pack["out/enc_features"])), method="logits")
    close(logits, pack["out/logits"])
    close(call(params, results["codes"], method="embedded"), pack["out/z_q"])


def test_trace(forward, model, pack):
    _, seen = forward
    plans = {"encoder": ("encoder", encoder_plan), "generator": ("decoder", decoder_plan)}
    traces = part(pack, "trace/")
    assert len(traces) == 6
    for name, wanted in traces.items():
        room, _, index = name.split(".")
        ours, plan = plans[room]
        close(seen[ours][plan(model)[int(index)].name]["__call__"][0], wanted)


def test_straight_through_gradients(quantizer, pack):
    params, call = quantizer

    def weighted(params, features):
        logits = call(params, features, method="logits")
        codes, _ = call(params, logits, None, nhwc(pack["ste/u"]), method="codes")
        z_q = call(params, codes, method="embedded")
        return (z_q * nhwc(pack["ste/R"])).sum(), (codes, z_q)

    features = jnp.asarray(nhwc(pack["out/enc_features"]))
    run = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))
    (_, (codes, z_q)), (by_params, by_features) = run(params, features)
    np.testing.assert_array_equal(codes, nhwc(pack["ste/code"]))
    close(z_q, pack["ste/z_q"])
    close(by_features, pack["ste/grad_h"])
    close(by_params["params"]["embed"]["kernel"], pack["ste/grad_embed"])
    kernel = by_params["params"]["proj"]["kernel"]
    close(kernel.T, pack["ste/grad_proj_w"][:, :, 0, 0])


def test_discriminator_and_its_losses(pack, meta):
    model = PatchDiscriminator(meta["ndf"], meta["disc_layers"])
    variables = from_torch(model, part(pack, "disc/"))
    run = jax.jit(lambda v, x: model.apply(v, x, mutable=["batch_stats"])[0])
    real = run(variables, nhwc(pack["in/image"]))
    fake = run(variables, nhwc(pack["out/recon_det"]))
    close(real, pack["disc_out/train_real"])
    close(fake, pack["disc_out/train_fake"])
    close(hinge_discriminator_loss(real, fake), pack["disc_out/hinge_d"])
    close(generator_loss(fake), pack["disc_out/g_loss"])


@pytest.mark.parametrize("room", ["state", "disc"])
def test_round_trip_keeps_every_name_and_bit(room, pack, meta, model, variables):
    state = part(pack, f"{room}/")
    if room == "disc":
        model = PatchDiscriminator(meta["ndf"], meta["disc_layers"])
        variables = from_torch(model, state)
    back = to_torch(model, variables)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].shape == value.shape and back[name].dtype == value.dtype, name
        assert back[name].tobytes() == value.tobytes(), name
