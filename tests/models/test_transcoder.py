"""The denoiser against a float64 rewriting of it in NumPy."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.models.transcoder import Denoiser, time_features
from bigr_jax.ops.bernoulli import bit_probability

BITS, WIDTH, BLOCKS, COND = 5, 8, 2, 6
MODEL = Denoiser(BITS, WIDTH, BLOCKS)


def silu(x):
    return x / (1 + np.exp(-x))


def oracle(params, x_t, t, condition):
    """The network in float64, written from the paper's description."""

    def linear(p, x):
        return x @ p["kernel"] + p["bias"]

    def modulated(h, shift, scale):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return h * (1 + scale) + shift

    angles = t[..., None] * 10000.0 ** (-np.arange(128) / 128)
    features = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    time = linear(params["time_out"], silu(linear(params["time_in"], features)))
    c = silu(linear(params["condition_in"], condition) + time)
    h = linear(params["bits_in"], 2 * x_t - 1)
    for i in range(BLOCKS):
        p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        shift, scale, gate = np.split(linear(p["modulation"], c), 3, axis=-1)
        y = linear(p["mlp_out"], silu(linear(p["mlp_in"], modulated(h, shift, scale))))
        h = h + gate * y
    shift, scale = np.split(linear(params["out_modulation"], c), 2, axis=-1)
    return linear(params["out"], modulated(h, shift, scale))


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(
        lambda: MODEL.init(jax.random.key(0), *(jnp.zeros(s) for s in ((1, BITS), (1,), (1, COND))))
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: 0.4 * rng.standard_normal(leaf.shape), nn.unbox(shapes)["params"]
    )


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    x_t = rng.integers(0, 2, (2, 3, BITS)).astype(float)
    return x_t, np.array([[0, 7, 255], [3, 3, 100]]), rng.standard_normal((2, 3, COND))


@pytest.fixture(scope="module")
def apply():
    return jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs))


def test_time_features():
    ours = time_features(jnp.array([0, 1, 255]))
    angles = np.array([0, 1, 255.0])[:, None] * 10000.0 ** (-np.arange(128) / 128)
    exact = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(ours, exact, atol=3e-5)


def test_network(params, inputs, apply):
    logits = apply(params, *inputs)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, oracle(params, *inputs), atol=2e-5)


@pytest.mark.parametrize("which", ["params", "condition"])
def test_gradients(params, inputs, which):
    x_t, t, condition = inputs
    weight = np.random.default_rng(2).standard_normal(x_t.shape)
    ours = jax.jit(
        jax.grad(
            lambda p, c: (MODEL.apply({"params": p}, x_t, t, c) * weight).sum(), argnums=(0, 1)
        )
    )(params, condition)[which == "condition"]
    point = condition if which == "condition" else params

    def value(moved):
        p, c = (params, moved) if which == "condition" else (moved, condition)
        return (oracle(p, x_t, t, c) * weight).sum()

    leaves, treedef = jax.tree.flatten(point)
    for i, gradient in enumerate(jax.tree.leaves(ours)):
        direction = np.random.default_rng(i).standard_normal(leaves[i].shape)
        values = [
            value(jax.tree.unflatten(treedef, [*leaves[:i], leaf, *leaves[i + 1 :]]))
            for leaf in (leaves[i] + 1e-5 * direction, leaves[i] - 1e-5 * direction)
        ]
        exact = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), exact, rtol=2e-4, atol=1e-4)


def test_one_time_for_all_tokens_broadcasts(params, inputs, apply):
    x_t, _, condition = inputs
    everywhere = apply(params, x_t, np.full((2, 3), 9), condition)
    np.testing.assert_allclose(apply(params, x_t, np.array(9), condition), everywhere, atol=1e-5)


def test_projecting_first_is_the_same(params, inputs, apply):
    x_t, t, condition = inputs
    variables = {"params": params}
    projected = MODEL.apply(variables, condition, method="project")
    assert projected.shape == (2, 3, WIDTH)
    step = jax.jit(lambda *inputs: MODEL.apply(variables, *inputs, method="step"))
    stepped = step(x_t, t, projected)
    np.testing.assert_allclose(stepped, apply(params, *inputs), atol=1e-5)


def test_tokens_do_not_see_each_other(params, inputs, apply):
    x_t, t, condition = inputs
    alone = apply(params, x_t[:1, 1:2], t[:1, 1:2], condition[:1, 1:2])
    np.testing.assert_allclose(alone[0, 0], apply(params, *inputs)[0, 1], atol=1e-5)


def test_a_new_network_knows_nothing(inputs):
    x_t, t, condition = inputs
    logits, variables = jax.jit(MODEL.init_with_output)(jax.random.key(1), x_t, t, condition)
    np.testing.assert_array_equal(logits, 0.0)
    np.testing.assert_array_equal(bit_probability(logits, jnp.asarray(x_t), "flip"), 0.5)
    layers = nn.unbox(variables)["params"]["layers"]
    assert layers["mlp_in"]["kernel"].shape == (BLOCKS, WIDTH, WIDTH)
    assert not np.array_equal(layers["mlp_in"]["kernel"][0], layers["mlp_in"]["kernel"][1])
    np.testing.assert_array_equal(layers["modulation"]["kernel"], 0.0)


def test_half_precision_keeps_float32_parameters_and_logits(params, inputs, apply):
    half = Denoiser(BITS, WIDTH, BLOCKS, jnp.bfloat16)
    variables = jax.eval_shape(half.init, jax.random.key(0), *inputs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits = jax.jit(half.apply)({"params": params}, *inputs)
    assert logits.dtype == jnp.float32
    exact = apply(params, *inputs)
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("width", "blocks", "condition", "millions"),
    [(1024, 3, 1024, 20.3), (1280, 6, 1280, 56.1), (1536, 8, 1536, 104.3)],
)
def test_published_sizes(width, blocks, condition, millions):
    model = Denoiser(24, width, blocks)
    shapes = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), *(jnp.zeros(s) for s in ((1, 24), (1,), (1, condition)))
        )
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
    assert round(count / 1e6, 1) == millions


def test_every_parameter_axis_has_a_name():
    shapes = jax.eval_shape(
        lambda: MODEL.init(jax.random.key(0), *(jnp.zeros(s) for s in ((1, BITS), (1,), (1, COND))))
    )
    boxes = jax.tree.leaves(
        shapes["params"], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    for box in boxes:
        assert len(box.names) == box.value.ndim and None not in box.names
    assert shapes["params"]["layers"]["mlp_out"]["kernel"].names == ("layers", "mlp", "embed")
