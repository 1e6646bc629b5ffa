"""BiFormer against recorded outputs of the official code, see README.md."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax.errors import UserError
from bigr_jax.interop.torch import from_torch, to_torch
from bigr_jax.models.biformer import BiFormer, Pyramid, Stages
from bigr_jax.nn.map_attention import Dense, Routed

HERE = Path(__file__).parent
LAYER = np.load(HERE / "biformer_bra_small.npz")
WHOLE = np.load(HERE / "biformer_tiny_forward.npz")
SIZES: dict[str, Any] = {
    "depths": (1, 1, 2, 1),
    "widths": (32, 64, 96, 128),
    "heads": (1, 2, 3, 8),
    # The recorded images are normalised already.
    "mean": (0.0,) * 3,
    "std": (1.0,) * 3,
}
STATE = {
    name[3:]: WHOLE[name].astype(np.float32) if WHOLE[name].dtype == np.float16 else WHOLE[name]
    for name in WHOLE.files
    if name.startswith("sd/")
}


def layer(kind: str) -> dict[str, Any]:
    """The parameters of a layer under this package's names."""
    dense = kind == "attn_lepe"
    names = {"qkv": "qkv", "out": "proj"} if dense else {"qkv": "qkv.qkv", "out": "wo"}
    heads = 8 if dense else 4
    weight = LAYER[f"{kind}/{names['qkv']}.weight"].T
    found: dict[str, Any] = {
        "qkv": {"kernel": weight.reshape(32, 3, heads, -1)},
        "out": {"kernel": LAYER[f"{kind}/{names['out']}.weight"].T},
        "local": {"kernel": LAYER[f"{kind}/lepe.weight"].transpose(2, 3, 1, 0)},
    }
    if not dense:
        found["qkv"]["bias"] = LAYER["bra/qkv.qkv.bias"].reshape(3, heads, -1)
    found["out"]["bias"] = LAYER[f"{kind}/{names['out']}.bias"]
    found["local"]["bias"] = LAYER[f"{kind}/lepe.bias"]
    return {"params": found}


def routed(**options: Any) -> Any:
    module = Routed(heads=4, regions=4, **options)
    return jax.jit(functools.partial(module.apply, layer("bra")))


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"topk": 1}, "out_topk1"),
        *(({"topk": 4, "form": form}, "out_topk4") for form in ("gather", "walk", "reference")),
        ({"topk": 16}, "out_topk16"),
        ({"topk": 16}, "dense_reference"),
        ({"topk": 4, "soft": True}, "out_topk4_soft_routing"),
        ({"topk": 4, "pool": "mean"}, "out_topk4_ada_avgpool1"),
        ({"topk": 4, "pool": "max"}, "out_topk4_ada_maxpool1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_routed_attention(options: dict[str, Any], recorded: str) -> None:
    np.testing.assert_allclose(
        routed(**options)(LAYER["bra/x"]), LAYER[f"bra/{recorded}"], rtol=0, atol=1e-5
    )


def test_routes() -> None:
    module = Routed(heads=4, regions=4, topk=4)
    _, seen = module.apply(layer("bra"), LAYER["bra/x"], mutable=["intermediates"])
    routes = np.asarray(seen["intermediates"]["routes"][0])
    np.testing.assert_array_equal(np.sort(routes), np.sort(LAYER["bra/r_idx_topk4"]))


def test_gradients() -> None:
    module = Routed(heads=4, regions=4, topk=4)

    def loss(variables: Any, x: Any) -> Any:
        return (module.apply(variables, x) * LAYER["bra/cotangent"]).sum()

    slopes, moved = jax.jit(jax.grad(loss, argnums=(0, 1)))(layer("bra"), LAYER["bra/x"])
    np.testing.assert_allclose(moved, LAYER["bra/grad_x_topk4"], rtol=0, atol=1e-5)
    found = slopes["params"]
    pairs = {
        "qkv.qkv.weight": found["qkv"]["kernel"].reshape(32, -1).T,
        "qkv.qkv.bias": found["qkv"]["bias"].ravel(),
        "wo.weight": found["out"]["kernel"].T,
        "wo.bias": found["out"]["bias"],
        "lepe.weight": found["local"]["kernel"].transpose(3, 2, 0, 1),
        "lepe.bias": found["local"]["bias"],
    }
    for name, value in pairs.items():
        wanted = LAYER[f"bra/grad_topk4/{name}"]
        limit = 1e-5 * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(value, wanted, rtol=0, atol=limit, err_msg=name)


def test_maps_that_regions_do_not_divide_are_exact_where_the_official_padding_leaks() -> None:
    x = LAYER["bra/x_7x10"]
    # The official code pads the input with zeros, whose keys are the bias, and does not mask them.
    padded = np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))
    leaking = LAYER["bra/out_topk4_autopad_legacy_7x10"]
    apply = routed(topk=4)
    np.testing.assert_allclose(apply(padded)[:, :7, :10], leaking, rtol=0, atol=1e-5)
    assert np.abs(apply(x) - leaking).max() > 0.01


@pytest.mark.parametrize(("of_input", "recorded"), [(True, "out_legacy"), (False, "out_nchw")])
def test_dense_attention(of_input: bool, recorded: str) -> None:
    module = Dense(heads=8, bias=False, by_width=False, of_input=of_input)
    y = jax.jit(module.apply)(layer("attn_lepe"), LAYER["bra/x"])
    np.testing.assert_allclose(y, LAYER[f"attn_lepe/{recorded}"], rtol=0, atol=1e-5)


def network(side: int) -> tuple[Any, Any]:
    regions, topk = {224: (7, (1, 4, 16, 0)), 64: (2, (1, 2, 4, 0))}[side]
    net = BiFormer(regions=regions, topk=topk, classes=10, **SIZES)
    return net, WHOLE[f"input_{side}"].astype(np.float32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("side", [224, 64])
def test_logits(side: int) -> None:
    net, images = network(side)
    logits, _ = jax.jit(net.apply)(from_torch(net, STATE), images)
    np.testing.assert_allclose(logits, WHOLE[f"logits_{side}"], rtol=0, atol=1e-5)


class Maps(Stages):
    """The maps as they are."""

    @nn.compact
    def __call__(self, images: Any) -> Any:
        return self.stages(images, True)


def test_maps_of_the_stages() -> None:
    net, images = network(64)
    net_of_maps = Maps(regions=2, topk=(1, 2, 4, 0), **SIZES)
    maps = jax.jit(net_of_maps.apply)(from_torch(net, STATE), images)
    for stage, found in enumerate(maps):
        wanted = WHOLE[f"feat_64/stage{stage}"].transpose(0, 2, 3, 1)
        limit = 1e-5 * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=limit)


def test_loss_gradients_and_batch_statistics() -> None:
    net, images = network(64)
    variables = from_torch(net, STATE)

    def loss(params: Any, train: bool) -> Any:
        given = {**variables, "params": params}
        (logits, _), _ = net.apply(given, images, not train, mutable=["batch_stats"])
        labels = jnp.asarray(WHOLE["labels_64"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (value, _), slopes = grad(variables["params"], False)
    assert float(value) == pytest.approx(float(WHOLE["loss_64"]), abs=1e-5)
    # Slopes have the layout of parameters.
    published = to_torch(net, {**variables, "params": jax.tree.map(np.asarray, slopes)})
    names = [name[8:] for name in WHOLE.files if name.startswith("grad_64/")]
    assert len(names) == 7
    for name in names:
        wanted = WHOLE[f"grad_64/{name}"]
        limit = 2e-5 * max(1, np.abs(wanted).max())
        np.testing.assert_allclose(published[name], wanted, rtol=0, atol=limit, err_msg=name)
    logits = jax.jit(loss, static_argnums=1)(variables["params"], True)[1]
    np.testing.assert_allclose(logits, WHOLE["logits_64_trainmode_bn"], rtol=0, atol=1e-5)


def test_the_published_file_comes_back_bit_by_bit() -> None:
    net, _ = network(64)
    back = to_torch(net, from_torch(net, STATE))
    assert back.keys() == STATE.keys()
    assert all(np.array_equal(back[name], STATE[name]) for name in STATE)


def test_a_pyramid_takes_the_stages_of_a_classifier() -> None:
    net = Pyramid(regions=2, topk=(1, 2, 4, 0), **SIZES)
    own = {f"extra_norms.{i}.{part}": np.ones(width, np.float32)
           for i, width in enumerate(SIZES["widths"]) for part in ("weight", "bias")}  # fmt: skip
    rest = {name: value for name, value in STATE.items() if not name.startswith(("norm.", "head."))}
    variables = from_torch(net, {**rest, **own})
    assert variables["params"]["map_norm_2"]["scale"].shape == (96,)
    with pytest.raises(UserError, match=r"extra_norms\.0\.weight"):
        from_torch(net, rest)


def test_other_attention_has_no_published_layout() -> None:
    with pytest.raises(UserError, match="attention='windows'"):
        from_torch(BiFormer(attention="windows", **SIZES), STATE)
