"""Networks with ternary layers: against float64 NumPy, by their invariants, under scan, remat and
on two devices, and frozen.
"""

from __future__ import annotations

import functools
import operator
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.models.decoder_lm import DecoderLayer, DecoderLM
from bigr_jax.models.mlp_classifier import MLPClassifier
from bigr_jax.nn.conv import conv
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.ternary import SCALE, Frozen, Ternary, codes, freeze, ternary
from bigr_jax.ops.ternary import ternary_quantise

KEY = jax.random.key(0)
LM = functools.partial(DecoderLM, 11, 16, 2, 2, 24)
TOKENS = np.arange(18).reshape(2, 9) % 11


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def standard(x, axes):
    x = x.astype(np.float64)
    x = x - x.mean(axes, keepdims=True)
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-5)


def activations(x, axes):
    """Returns what the rounded activations stand for, in float64."""
    x = standard(x, axes)
    scale = 128 / np.abs(x).max(axes, keepdims=True)
    return np.clip(np.rint(x * scale), -128, 127) / scale


def matrix(kernel):
    """Returns what the codes of one matrix stand for, in float64, by the median."""
    size = np.sort(np.abs(kernel.astype(np.float64)).ravel())
    scale = 1 / size[(size.size - 1) // 2]
    return np.clip(np.rint(kernel * scale), -1, 1) / scale


CASES = {
    "one to one": ((4,), ("embed", "mlp"), (6,), "btd,df->btf"),
    "queries, keys and values": ((3, 2, 5), ("embed", None, "heads", "head_dim"), (6,),
                                 "btd,dihc->btihc"),
    "two to one": ((4,), ("heads", "head_dim", "embed"), (2, 5), "bthc,hcd->btd"),
}  # fmt: skip


@pytest.mark.parametrize("features, names, inputs, product", CASES.values(), ids=CASES)
def test_linear_matches_float64(features, names, inputs, product):
    x, kernel, bias = draw(0, 2, 3, *inputs) * 3, draw(1, *inputs, *features), draw(2, *features)
    net = Ternary(Linear(features, names, bias=True))
    y = jax.jit(net.apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    axes = tuple(range(-len(inputs), 0))
    # Queries, keys and values have a matrix each.
    parts = [matrix(part) for part in np.moveaxis(kernel, 1, 0)] if len(features) == 3 else None
    wide = matrix(kernel) if parts is None else np.stack(parts, 1)
    wanted = np.einsum(product, activations(x, axes), wide) + bias
    np.testing.assert_allclose(y, wanted, atol=2e-5)


def test_convolution_matches_float64_and_an_image_has_one_scale():
    x, layer = draw(0, 2, 6, 5, 3), conv(4, 3, jnp.float32, "c", strides=2)
    kernel, bias = draw(1, 3, 3, 3, 4), draw(2, 4)
    params = {"params": {"kernel": kernel, "bias": bias}}
    y = jax.jit(Ternary(layer).apply)(params, x)
    padded = np.pad(activations(x, (1, 2, 3)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    cut = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    wanted = np.einsum("bhwcij,ijcf->bhwf", cut, matrix(kernel)) + bias
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    frozen = freeze(params, {("kernel",): (-4, -3, -2, -1)}, "median")
    np.testing.assert_array_equal(jax.jit(Frozen(layer).apply)(frozen, x), y)


def test_dense_is_as_linear():
    x, params = draw(0, 3, 6), {"params": {"kernel": draw(1, 6, 4), "bias": draw(2, 4)}}
    y = Ternary(nn.Dense(4)).apply(params, x)
    same = Ternary(Linear((4,), (None, None), bias=True)).apply(params, x)
    np.testing.assert_array_equal(y, same)


@pytest.mark.parametrize(
    "how", [{"weights": "fp"}, {"strength": 0.0}, {"strength": 0.0, "bits": 2}]
)
def test_without_rounding_it_is_a_norm_and_a_product(how):
    x, kernel = draw(0, 3, 6), draw(1, 6, 4)
    y = Ternary(Linear((4,), (None, None)), **how).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(y, standard(x, -1) @ kernel, atol=5e-6)


def test_the_size_of_inputs_is_not_seen_and_that_of_weights_is():
    x, kernel, net = draw(0, 3, 6), draw(1, 6, 4), Ternary(Linear((4,), (None, None)))
    y = net.apply({"params": {"kernel": kernel}}, x)
    # Powers of two round nothing but the norm's epsilon.
    np.testing.assert_allclose(net.apply({"params": {"kernel": kernel}}, x * 64), y, rtol=2e-2)
    np.testing.assert_allclose(net.apply({"params": {"kernel": kernel * 8}}, x), y * 8, rtol=1e-6)


def test_products_in_bfloat16_lose_nothing_but_the_last_rounding():
    x, params = draw(0, 3, 600), {"params": {"kernel": draw(1, 600, 4)}}
    wide = Ternary(Linear((4,), (None, None))).apply(params, x)
    y = Ternary(Linear((4,), (None, None), dtype=jnp.bfloat16)).apply(params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


def test_products_of_integers_are_summed_as_int32():
    rng = np.random.default_rng(0)
    x, kernel = rng.integers(-128, 128, (3, 600)), rng.integers(-1, 2, (600, 4))
    layer = Linear((4,), (None, None), dtype=jnp.int8)
    y = layer.apply({"params": {"kernel": kernel.astype(np.int8)}}, x.astype(np.int8))
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, x @ kernel)


@pytest.fixture(scope="module")
def told():
    """Variables, matrices, logits and gradients of a ternary language model."""
    net = Ternary(LM())
    variables = nn.meta.unbox(net.init(KEY, TOKENS))

    def total(variables):
        logits = net.apply(variables, TOKENS)
        return jnp.square(logits).mean(), logits

    (_, logits), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(variables)
    return variables, net.matrices(KEY, TOKENS), logits, slopes


def test_parameters_are_those_of_the_plain_network(told):
    variables, matrices, logits, slopes = told
    plain = LM().init(KEY, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, variables, nn.meta.unbox(plain))
    boxed = Ternary(LM()).init(KEY, TOKENS)
    assert jax.tree.structure(boxed) == jax.tree.structure(plain)
    assert {"/".join(path) for path in matrices} == {
        f"layers/{name}/kernel"
        for name in ("attention/qkv", "attention/out", "mlp/gate", "mlp/up", "mlp/down")
    }
    assert np.abs(logits - LM().apply(variables, TOKENS)).max() > 0.1
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert float(jnp.abs(slope).max()) > 1e-6, path


def test_layers_computed_again_or_one_by_one_give_the_same(told):
    variables, _, logits, slopes = told
    net = Ternary(LM(remat="dots"))
    found = jax.jit(jax.grad(lambda v: jnp.square(net.apply(v, TOKENS)).mean()))(variables)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, slopes)

    @jax.jit
    def one_by_one(variables):
        params = variables["params"]
        x, layer = params["table"][TOKENS], Ternary(DecoderLayer(2, 24, 0.0, jnp.float32))
        for place in range(2):
            own = jax.tree.map(operator.itemgetter(place), params["layers"])
            x = layer.apply({"params": own}, x)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * params["norm"]["scale"] @ params["table"].T

    np.testing.assert_allclose(one_by_one(variables), logits, atol=1e-5)


def test_a_frozen_language_model_gives_the_same_bits(told):
    variables, matrices, logits, _ = told
    frozen = jax.jit(lambda variables: freeze(variables, matrices, "median"))(variables)
    assert len(codes(frozen)) == len(matrices)
    qkv = frozen["params"]["layers"]["attention"]["qkv"]
    assert qkv["kernel"].dtype == jnp.int8 and qkv[SCALE].shape == (2, 1, 3, 1, 1)
    for layer in range(2):
        kernel = variables["params"]["layers"]["attention"]["qkv"]["kernel"][layer]
        np.testing.assert_array_equal(
            qkv["kernel"][layer], ternary_quantise(kernel, "median", (0, 2, 3))[0]
        )
    found = jax.jit(Frozen(LM()).apply)(frozen, TOKENS)
    np.testing.assert_array_equal(found, logits)


def test_other_methods_are_ternary_too_and_sizes_are_those_of_the_network(told):
    variables, _, logits, _ = told
    net = Ternary(LM())
    assert (net.vocabulary, net.depth) == (11, 2)
    cache, length = net.empty_cache(2, 9), jnp.zeros(2, jnp.int32)
    extend = jax.jit(functools.partial(net.apply, method="extend"))
    found, _ = extend(variables, TOKENS, cache, length)
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_what_is_kept_stays_as_it_is():
    net, images = MLPClassifier(4, (6, 6)), draw(0, 3, 2, 2, 2)
    kept = Ternary(net, "mean", keep="^(hidden_0|logits)$")
    variables = nn.meta.unbox(kept.init(KEY, images))
    assert kept.matrices(KEY, images) == {("hidden_1", "kernel"): (-2, -1)}
    params = variables["params"]
    x = np.maximum((images.reshape(3, -1) * 2 - 1) @ params["hidden_0"]["kernel"], 0)
    hidden = Ternary(Linear((6,), (None, None)), "mean").apply(
        {"params": {"kernel": params["hidden_1"]["kernel"]}}, x
    )
    wanted = np.maximum(hidden, 0) @ params["logits"]["kernel"]
    np.testing.assert_allclose(kept.apply(variables, images)[0], wanted, atol=1e-5)
    frozen = freeze(variables, kept.matrices(KEY, images), "mean")
    np.testing.assert_allclose(Frozen(net).apply(frozen, images)[0], wanted, atol=1e-5)
    assert ternary(net, "plain") is net


def test_mistakes_are_named():
    net, images = MLPClassifier(4, (6,)), draw(0, 3, 8)
    with pytest.raises(UserError, match=r"weights.*plain, fp, mean, median, max"):
        ternary(net, "medain").init(KEY, images)
    with pytest.raises(UserError, match=r"keep='stem' is in the path of no layer.*hidden_0"):
        ternary(net, "median", "stem").init(KEY, images)
    with pytest.raises(UserError, match="leaves no layer to be ternary"):
        ternary(net, "median", ".").init(KEY, images)
    with pytest.raises(UserError, match=r"keep='\(' is no pattern"):
        ternary(net, "median", "(").init(KEY, images)
    with pytest.raises(UserError, match="bits=9: activations have 2 to 8"):
        ternary(net, "median", bits=9).init(KEY, images)
    with pytest.raises(UserError, match="strength=2: legal: 0 to 1"):
        ternary(net, "median", strength=2).init(KEY, images)


def test_weights_in_parts_on_two_devices_are_not_brought_together(run_python):
    found = run_python([__file__], devices=2)
    assert found.returncode == 0, found.stderr


def parted():
    """Compares codes of weights that lie on two devices with those on one; for two devices."""
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    assert jax.device_count() == 2
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
    weights = draw(0, 16, 3, 8)
    quantise = functools.partial(ternary_quantise, measure="median", axes=(0, 2))
    alone = jax.jit(quantise)(weights)
    for axes in (("fsdp",), (None, None, "fsdp")):
        where = NamedSharding(mesh, PartitionSpec(*axes))
        made = jax.jit(quantise, in_shardings=where, out_shardings=(where, None))
        made = made.lower(weights).compile()
        both = made(jax.device_put(weights, where))
        jax.tree.map(np.testing.assert_array_equal, both, alone)
        assert "all-gather" not in made.as_text() and "all-reduce" in made.as_text()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    parted()
