"""Convolutional blocks against float64 NumPy, values and gradients."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from bigr_jax.nn.conv import AttnBlock, Downsample, ResBlock, Upsample, group_norm


def conv_oracle(x, p, strides=1, padding=None):
    kernel = p["kernel"]
    size = kernel.shape[0]
    low, high = padding or (size // 2, size // 2)
    x = np.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))
    rows, cols = (range(0, n - size + 1, strides) for n in x.shape[1:3])
    y = np.empty((x.shape[0], len(rows), len(cols), kernel.shape[-1]))
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            patch = x[:, row : row + size, col : col + size]
            y[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return y + p.get("bias", 0.0)


def norm_oracle(x, p, groups):
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return normal * p["scale"] + p["bias"]


def swish(x):
    return x / (1 + np.exp(-x))


def res_oracle(x, p, groups):
    h = conv_oracle(swish(norm_oracle(x, p["norm1"], groups)), p["conv1"])
    h = conv_oracle(swish(norm_oracle(h, p["norm2"], groups)), p["conv2"])
    return h + (conv_oracle(x, p["conv_out"]) if "conv_out" in p else x)


def attention_oracle(x, p, groups):
    batch, _, _, channels = x.shape
    h = norm_oracle(x, p["norm"], groups).reshape(batch, -1, channels)
    query, key, value = (h @ p[n]["kernel"] + p[n]["bias"] for n in "qkv")
    logits = query @ key.transpose(0, 2, 1) / np.sqrt(channels)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    h = weights / weights.sum(-1, keepdims=True) @ value
    return x + (h @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]).reshape(x.shape)


CASES = {
    # Odd heights and widths, one pixel, a batch of one; 6 channels in gcd(4, 6) = 2 groups.
    "res": (ResBlock(6, 4), (2, 5, 3, 6), lambda x, p: res_oracle(x, p, 2)),
    "res_wider": (ResBlock(8, 2), (1, 3, 4, 4), lambda x, p: res_oracle(x, p, 2)),
    "attention": (AttnBlock(2), (2, 3, 5, 6), lambda x, p: attention_oracle(x, p, 2)),
    "attention_one_pixel": (AttnBlock(1), (1, 1, 1, 4), lambda x, p: attention_oracle(x, p, 1)),
    "down": (Downsample(), (1, 6, 4, 3), lambda x, p: conv_oracle(x, p["conv"], 2, (0, 1))),
    "up": (
        Upsample(),
        (2, 3, 1, 3),
        lambda x, p: conv_oracle(x.repeat(2, 1).repeat(2, 2), p["conv"]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    module, shape, oracle = CASES[case]
    rng = np.random.default_rng(0)
    x, step = rng.normal(size=(2, *shape))
    variables = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape))))
    flat = {k: rng.normal(size=v.shape) for k, v in flatten_dict(variables["params"]).items()}
    steps = {k: rng.normal(size=v.shape) for k, v in flat.items()}
    pull = rng.normal(size=oracle(x, unflatten_dict(flat)).shape)

    def pulled(params, x):
        y = module.apply({"params": params}, x)
        return (y * pull).sum(), y

    params32, x32 = jax.tree.map(np.float32, (unflatten_dict(flat), x))
    run = jax.jit(jax.value_and_grad(pulled, argnums=(0, 1), has_aux=True))
    (_, y), (by_params, by_x) = run(params32, x32)
    wanted = oracle(x, unflatten_dict(flat))
    scale = max(np.abs(wanted).max(), 1.0)
    np.testing.assert_allclose(np.asarray(y) / scale, wanted / scale, atol=2e-6)

    def moved(size):
        moved_params = unflatten_dict({k: flat[k] + size * steps[k] for k in flat})
        return (oracle(x + size * step, moved_params) * pull).sum()

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    by_params = {k: np.float64(v) for k, v in flatten_dict(by_params).items()}
    parts = [by_params[k] * steps[k] for k in flat] + [np.float64(by_x) * step]
    tolerance = 2e-6 * sum(np.abs(part).sum() for part in parts)
    np.testing.assert_allclose(sum(part.sum() for part in parts), slope, atol=tolerance)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (16, 16), (48, 16), (7, 1)])
def test_groups_of_narrow_networks(channels, groups):
    assert group_norm(channels, 32, jnp.float32, "norm").num_groups == groups


def test_wide_mean_does_not_spoil_the_norm():
    x = 1000.0 + np.random.default_rng(0).normal(size=(1, 4, 4, 8))
    variables = {"params": {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}}
    y = group_norm(8, 2, jnp.float32, None).apply(variables, np.float32(x))
    wanted = norm_oracle(np.float64(np.float32(x)), {"scale": 1.0, "bias": 0.0}, 2)
    np.testing.assert_allclose(y, wanted, atol=1e-3)


def test_low_precision_computes_low_and_keeps_parameters_high():
    module = AttnBlock(2, jnp.bfloat16)
    x = jnp.ones((1, 2, 2, 4), jnp.bfloat16)
    variables = nn.unbox(module.init(jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert module.apply(variables, x).dtype == jnp.bfloat16


def test_kernels_have_logical_axes():
    boxed = jax.eval_shape(lambda: ResBlock(4, 2).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4))))
    kernel = boxed["params"]["conv1"]["kernel"]
    assert kernel.names == (None, None, "conv_in", "conv_out")
    assert boxed["params"]["norm1"]["scale"].names == ("conv_out",)
