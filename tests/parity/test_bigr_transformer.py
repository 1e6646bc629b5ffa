"""The transformer, its loss and every gradient against numbers of the official implementation.

`bigr_transformer_small.npz` holds random weights, inputs and results of the PyTorch code.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.interop.torch import from_torch, to_torch
from bigr_jax.losses.bits import transcoder_loss
from bigr_jax.models.bigr import BiGR
from bigr_jax.nn.adaln import modulate
from bigr_jax.nn.attention import Attention
from bigr_jax.nn.mlp import SwiGLU
from bigr_jax.nn.norms import RMSNorm
from bigr_jax.nn.stack import scan_layers
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.ops.rope import grid_table

ATOL = 3e-5
PACK = Path(__file__).with_name("bigr_transformer_small.npz")


@pytest.fixture(scope="module")
def pack():
    with np.load(PACK) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(pack):
    c = config(pack)
    side = round(c["seq_len"] ** 0.5)
    return BiGR(
        depth=c["n_layer"],
        width=c["dim"],
        heads=c["n_head"],
        bits=c["binary_size"],
        grid=(side, side),
        num_classes=c["num_classes"],
        head_width=c["denoise_hidden_dim"],
        head_blocks=c["num_block_mlp"],
    )


@pytest.fixture(scope="module")
def variables(model, pack):
    return from_torch(model, part(pack, "state/"))


@pytest.fixture(scope="module")
def forward(model, variables, pack):
    """Everything that the pack records of one forward pass, from one compiled program."""

    def run(variables, bits, labels, labels2, weights, mask):
        def call(method, *args):
            return model.apply(variables, *args, method=method)

        def residual(model, tokens, modulation):
            rope = grid_table(model.grid, model.width // model.heads, prefix=1)
            inputs = (tokens, modulation, None, rope)
            return scan_layers(model.layers, model.depth, *inputs, collect=True)

        condition, other = call("condition", labels), call("condition", labels2)
        mixed = weights[0] * condition + weights[1] * other
        modulation = call(lambda m, c: m.modulation(c), condition)
        tokens = call("tokens", bits, condition, mask)
        last, streams = call(residual, tokens, modulation)
        return {
            "out/cls_embedding": condition,
            "out/adaln_shared": modulation,
            "out/tokens_in": tokens,
            "out/block0": streams[0],
            "out/block1": streams[1],
            "out/final_norm": call(lambda m, x: m.norm(x), last),
            "out/hidden": call("hidden", bits, condition, mask),
            "out/hidden_no_adaln": model.clone(adaln=False).apply(
                variables, bits, condition, mask, method="hidden"
            ),
            "out/features_layer0": call("features", bits, labels, 0),
            "out/features_layer1": call("features", bits, labels, 1),
            "every": call("features_all", bits, labels),
            "interp/hidden": call("hidden", bits, mixed, mask),
        }

    names = ("in/bits", "in/labels", "interp/labels2", "interp/weights", "in/mask")
    return jax.jit(run)(variables, *(jnp.asarray(pack[name]) for name in names))


@pytest.fixture(scope="module")
def training(model, variables, pack):
    """The loss, its parts and the gradient of every parameter."""
    schedule = make_schedule("linear", config(pack)["n_sample_steps"])
    bits, mask = jnp.asarray(pack["in/bits"]), jnp.asarray(pack["in/mask"])
    x_t = jnp.asarray(pack["train/x_t"]).reshape(bits.shape)
    t = jnp.asarray(pack["train/t"]).reshape(mask.shape)

    def loss(variables):
        logits = model.apply(variables, bits, jnp.asarray(pack["in/labels"]), mask, x_t, t)
        result = transcoder_loss(logits, bits, x_t, t, schedule, mask)
        # The official code counts the accuracy over all tokens, its loss over the masked ones.
        everywhere = transcoder_loss(logits, bits, x_t, t, schedule)
        return result.loss, (logits, result, everywhere.accuracy)

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    logits, result, accuracy = found
    flat = (-1, bits.shape[-1])
    values = {
        "train/flip_logits": logits.reshape(flat),
        "train/loss_all": result.per_bit.reshape(flat),
        "train/loss": result.loss,
        "train/bce_loss": result.loss,
        "train/acc": accuracy,
    }
    # Of the collections, only params has gradients; "unused" holds constants.
    return values, to_torch(model, {"params": gradients["params"]})


def config(pack):
    return json.loads(bytes(pack["meta_json"]))["config"]


def part(pack, prefix):
    return {name.removeprefix(prefix): a for name, a in pack.items() if name.startswith(prefix)}


def close(actual, wanted):
    np.testing.assert_allclose(np.asarray(actual), wanted, rtol=0, atol=ATOL)


OUTPUTS = (
    "out/cls_embedding",
    "out/adaln_shared",
    "out/tokens_in",
    "out/block0",
    "out/block1",
    "out/final_norm",
    "out/hidden",
    "out/hidden_no_adaln",
    "out/features_layer0",
    "out/features_layer1",
    "interp/hidden",
)


@pytest.mark.parametrize("name", OUTPUTS)
def test_forward(forward, pack, name):
    close(forward[name], pack[name])


def test_features_of_all_layers_at_once(forward):
    for layer, every in enumerate(forward["every"]):
        np.testing.assert_allclose(every, forward[f"out/features_layer{layer}"], rtol=0, atol=1e-6)


def test_rotation_table(model, pack):
    table = grid_table(model.grid, model.width // model.heads, prefix=1)
    close(table, pack["out/rope_cos_sin"])
    assert not table[0].any()


def test_parts_of_the_first_block(model, variables, pack):
    first = jax.tree.map(lambda leaf: leaf[0], variables["params"]["layers"])
    six = pack["out/adaln_shared"] + first["modulation"]["offset"]
    shift_mixer, scale_mixer, gate_mixer, shift_mlp, scale_mlp, _ = np.moveaxis(six, -2, 0)

    def apply(module, params, *args):
        return module.apply({"params": params}, *args)

    norm = apply(RMSNorm(), first["mixer_norm"], pack["out/tokens_in"])
    close(norm, pack["out/attn_norm0"])

    u = modulate(pack["out/attn_norm0"], shift_mixer, scale_mixer)
    table = grid_table(model.grid, model.width // model.heads, prefix=1)
    close(apply(Attention(model.heads), first["mixer"], u, None, table), pack["out/attn0"])

    h = pack["out/tokens_in"] + gate_mixer * pack["out/attn0"]
    u = modulate(apply(RMSNorm(), first["mlp_norm"], h), shift_mlp, scale_mlp)
    close(apply(SwiGLU(256), first["mlp"], u), pack["out/ffn0"])


@pytest.mark.parametrize("name", ("flip_logits", "loss_all", "loss", "bce_loss", "acc"))
def test_training_values(training, pack, name):
    close(training[0][f"train/{name}"], pack[f"train/{name}"])


def test_gradient_of_every_parameter(training, pack):
    wanted, actual = part(pack, "grad/"), training[1]
    assert wanted.keys() == actual.keys()
    for name in wanted:
        # The gradients of a mean are small: measured against the largest of the parameter.
        atol = ATOL * abs(wanted[name]).max()
        np.testing.assert_allclose(actual[name], wanted[name], rtol=0, atol=atol, err_msg=name)
