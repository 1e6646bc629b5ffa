"""BiFormer's sizes, and what must hold of its maps whatever their size."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.models.biformer import SIZES, BiFormer, Pyramid, named

# As measured of the official classes; multiply-adds are in benchmarks/biformer.py.
PARAMETERS = {"T": 13_142_760, "S": 25_536_232, "B": 56_804_968, "STL": 28_372_552}
SMALL = {"depths": (1, 2), "widths": (8, 16), "heads": (2, 2), "topk": (2, 0), "stem": 2}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_the_published_parameters(name):
    net = named(name)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    found = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert found == PARAMETERS[name]


@pytest.fixture(scope="module")
def small():
    net = BiFormer(classes=3, regions=2, **SMALL)
    draw = np.random.default_rng(0)
    images = draw.uniform(size=(4, 10, 6, 1)).astype(np.float32)
    return net, jax.jit(net.init)(jax.random.key(0), images), images


def test_images_of_any_size_and_of_one_channel(small):
    net, variables, images = small
    apply = jax.jit(net.apply)
    for shape in ((1, 1, 1, 1), (2, 7, 9, 1)):
        logits, features = apply(variables, np.ones(shape, np.float32))
        assert logits.shape == (shape[0], 3) and features.shape == (shape[0], 16)
        assert np.isfinite(logits).all()
    one, _ = apply(variables, images)
    np.testing.assert_allclose(apply(variables, images[:1])[0], one[:1], rtol=0, atol=1e-5)


def test_training_uses_the_statistics_of_the_batch_and_keeps_a_tenth(small):
    net, variables, images = small
    train = jax.jit(lambda v, x: net.apply(v, x, False, mutable=["batch_stats"]))
    (logits, _), changed = train(variables, images)
    assert np.abs(logits - net.apply(variables, images)[0]).max() > 1e-3
    before, after = variables["batch_stats"]["norm_0"], changed["batch_stats"]["norm_0"]
    # The first map is a convolution of images of which mean and variance can be told.
    first = (images - np.mean(net.mean)) / np.mean(net.std)
    kernel = nn.unbox(variables["params"])["down_0"]["kernel"].sum(2, keepdims=True)
    x = jax.lax.conv_general_dilated(
        first, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    wanted = 0.9 * before["mean"] + 0.1 * np.asarray(x).mean((0, 1, 2))
    np.testing.assert_allclose(after["mean"], wanted, atol=1e-5)
    wanted = 0.9 * before["var"] + 0.1 * np.asarray(x).var((0, 1, 2))
    np.testing.assert_allclose(after["var"], wanted, atol=1e-5)


def test_the_maps_of_a_pyramid_are_normalised_and_halved():
    net = Pyramid(regions=2, **SMALL)
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(1, 9, 12, 3)), jnp.float32)
    maps, _ = jax.jit(lambda key: net.init_with_output(key, images))(jax.random.key(0))
    assert [x.shape for x in maps] == [(1, 5, 6, 8), (1, 3, 3, 16)]
    for x in maps:
        np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(-1), 1, atol=1e-2)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"size='XL'.*T, S, B, STL"):
        named("XL")
    with pytest.raises(UserError, match=r"field of BiFormer='depth'.*depths"):
        named("T", depth=3)
    net = BiFormer(depths=(1, 1), widths=(8,), heads=(2, 2), topk=(1, 0))
    with pytest.raises(UserError, match=r"widths=\(8,\).* are not of 2 stages"):
        net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
