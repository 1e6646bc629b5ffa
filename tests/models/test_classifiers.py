"""Networks that classify images, against NumPy in float64; their sizes are the published ones."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.models.mlp_classifier import MLPClassifier
from bigr_jax.models.resnet import SIZES, BasicBlock, ResNet

KEY = jax.random.key(0)


def images(shape=(3, 8, 8, 1), seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@pytest.mark.parametrize(("widths", "batch"), [((), 3), ((7,), 1), ((6, 5), 3)])
def test_mlp_is_its_formula(widths, batch):
    net, x = MLPClassifier(4, widths), images((batch, 3, 2, 2))
    variables = nn.meta.unbox(net.init(KEY, x))
    logits, features = net.apply(variables, x, False)
    h = np.asarray(x, "f8").reshape(batch, -1) * 2 - 1
    for index in range(len(widths)):
        layer = variables["params"][f"hidden_{index}"]
        h = np.maximum(h @ np.asarray(layer["kernel"], "f8") + np.asarray(layer["bias"]), 0)
    layer = variables["params"]["logits"]
    np.testing.assert_allclose(features, h, atol=1e-5)
    np.testing.assert_allclose(logits, h @ np.asarray(layer["kernel"], "f8"), atol=1e-5)
    assert MLPClassifier(4, widths, jnp.bfloat16).apply(variables, x)[0].dtype == jnp.float32


def counted(net, size=32):
    shapes = jax.eval_shape(net.init, KEY, jnp.zeros((1, size, size, 3)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def test_published_sizes():
    assert counted(ResNet(10, **SIZES["resnet18"])) == 11_173_962
    assert counted(ResNet(10, **SIZES["resnet34"])) == 21_282_122
    # With the norm behind the last block.
    assert counted(ResNet(10, **SIZES["preact_resnet18"])) == 11_171_146 + 2 * 512


def convolved(x, kernel, stride):
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[1] - size + 1, stride)
    return np.stack(
        [np.stack([np.einsum("bhwc,hwcd->bd", x[:, i : i + size, j : j + size], kernel)
                   for j in rows], 1) for i in rows], 1
    )  # fmt: skip


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize(("stride", "features"), [(1, 2), (2, 3)])
def test_a_block_is_its_formula(preact, stride, features):
    block, x = BasicBlock(features, stride, preact), images((2, 4, 4, 2))
    variables = nn.meta.unbox(jax.jit(block.init)(KEY, x))
    rng = np.random.default_rng(1)
    random = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), variables)
    found, moved = block.apply(
        jax.tree.map(lambda leaf: leaf.astype("f4"), random), x, False, mutable=["batch_stats"]
    )
    params = random["params"]

    def norm(y, name):
        centred = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
        return centred * params[name]["scale"] + params[name]["bias"]

    def conv(y, name, stride=1):
        return convolved(y, params[name]["kernel"], stride)

    x = np.asarray(x, "f8")
    changed = stride > 1 or features != 2
    if preact:
        h = np.maximum(norm(x, "norm1"), 0)
        skip = conv(h, "skip", stride) if changed else x
        h = np.maximum(norm(conv(h, "conv1", stride), "norm2"), 0)
        wanted = skip + conv(h, "conv2")
    else:
        h = np.maximum(norm(conv(x, "conv1", stride), "norm1"), 0)
        h = norm(conv(h, "conv2"), "norm2")
        skip = norm(conv(x, "skip", stride), "skip_norm") if changed else x
        wanted = np.maximum(h + skip, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    mean = (x if preact else conv(x, "conv1", stride)).mean((0, 1, 2))
    old = random["batch_stats"]["norm1"]["mean"]
    np.testing.assert_allclose(
        moved["batch_stats"]["norm1"]["mean"], 0.9 * old + 0.1 * mean, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["resnet_tiny", "preact_resnet_tiny"])
def test_every_parameter_learns_and_statistics_stay_when_measured(name):
    net, x = ResNet(3, **SIZES[name]), images((4, 9, 9, 1))
    variables = nn.meta.unbox(jax.jit(net.init)(KEY, x))

    @jax.jit
    def slopes(variables):
        def loss(params):
            (logits, features), _ = net.apply(
                {**variables, "params": params}, x, False, mutable=["batch_stats"]
            )
            return jnp.square(logits - jnp.arange(3)).sum() + 0 * features.sum()

        return jax.grad(loss)(variables["params"])

    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes(variables)))
    logits, features = jax.jit(net.apply)(variables, x)
    assert logits.shape == (4, 3) and features.shape == (4, 16)
    assert logits.dtype == features.dtype == jnp.float32


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="not equally many"):
        ResNet(3, depths=(1,), widths=(4, 8)).init(KEY, images())


def test_images_are_normalised_by_channel():
    net = ResNet(2, depths=(1,), widths=(4,), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    plain = net.clone(mean=(0.0,), std=(1.0,))
    x = images((2, 4, 4, 3))
    variables = nn.meta.unbox(net.init(KEY, x))
    moved = (x - jnp.array([0.1, 0.2, 0.3])) / jnp.array([0.5, 1.0, 2.0])
    found, wanted = net.apply(variables, x)[0], plain.apply(variables, moved)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
