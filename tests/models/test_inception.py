"""FID's Inception-v3: its resize, its pools, its size. Its numbers are in the parity tests."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.models import inception
from bigr_jax.models.inception import BLOCKS, InceptionV3, Taps, tf1_resize


def by_loops(images, side):
    """ResizeBilinear of TensorFlow 1 in float64, place by place."""
    batch, height, width, channels = images.shape
    out = np.zeros((batch, side, side, channels))
    for i in range(side):
        for j in range(side):
            # The scale is of single precision there.
            y, x = (
                i * np.float64(np.float32(height / side)),
                j * np.float64(np.float32(width / side)),
            )
            top, left = int(y), int(x)
            low, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = images[:, top, left] * (1 - x + left) + images[:, top, right] * (x - left)
            below = images[:, low, left] * (1 - x + left) + images[:, low, right] * (x - left)
            out[:, i, j] = above * (1 - y + top) + below * (y - top)
    return out


@pytest.mark.parametrize("shape", [(5, 8), (1, 1), (31, 7), (19, 19), (40, 23)])
def test_resize_is_that_of_tensorflow_1(shape):
    images = np.random.default_rng(0).uniform(0, 255, (2, *shape, 3)).astype(np.float32)
    found = tf1_resize(jnp.asarray(images), 19)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_loops(np.float64(images), 19), atol=2e-3)
    if shape == (19, 19):
        np.testing.assert_array_equal(found, images)


def test_resize_repeats_the_last_row_and_does_not_shift():
    ramp = np.arange(4.0, dtype=np.float32).reshape(1, 4, 1, 1)
    found = tf1_resize(jnp.asarray(ramp), 8)[0, :, 0, 0]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])


def test_grey_levels_become_numbers_around_zero():
    levels = np.array([0, 128, 255], np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    found = np.asarray(inception.prepared(levels))
    assert found.shape == (3, 299, 299, 3)
    np.testing.assert_array_equal(np.unique(found), np.float32([-1, 0, 127 / 128]))


def test_pools_leave_the_padding_out():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    averages = inception.averaged(x)[0, ..., 0]
    np.testing.assert_allclose(averages, [[3, 3.5, 4], [4.5, 5, 5.5], [6, 6.5, 7]], rtol=1e-6)
    np.testing.assert_array_equal(inception.averaged(jnp.ones((1, 4, 5, 2))), 1)
    np.testing.assert_array_equal(
        inception.largest(-x)[0, ..., 0], [[-1, -1, -2], [-1, -1, -2], [-4, -4, -5]]
    )
    np.testing.assert_array_equal(inception.halved(x), [[[[9]]]])


@pytest.fixture(scope="module")
def made():
    return jax.eval_shape(
        lambda: InceptionV3().init(jax.random.key(0), jnp.zeros((2, 32, 32, 3), jnp.uint8))
    )


def test_size_and_logical_names(made):
    plain = nn.unbox(made)
    # Inception-v3 of 1000 classes, without its auxiliary head, has 23 834 568.
    wanted = 23_834_568 + 8 * (2048 + 1)
    assert sum(x.size for x in jax.tree.leaves(plain["params"])) == wanted
    specs = jax.tree.leaves(nn.get_partition_spec(made["params"]))
    assert len(specs) == 94 * 3 + 2
    axes = {None, "conv_in", "conv_out", "embed", "vocab"}
    assert {axis for spec in specs for axis in spec} == axes


def test_taps_of_any_size(made):
    for size in ((8, 8), (40, 56)):
        taps = jax.eval_shape(
            InceptionV3().apply, nn.unbox(made), jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
        )
        wanted = Taps(64, 192, 768, 2023, 2048, 1008, 1008)
        assert [x.shape for x in taps] == [(2, features) for features in wanted]
        assert {x.dtype for x in taps} == {jnp.dtype("float32")}


def test_every_product_is_of_full_precision(made):
    traced = jax.make_jaxpr(InceptionV3().apply)(
        nn.unbox(made), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
    )
    products = [
        equation
        for equation in traced.jaxpr.eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    highest = jax.lax.Precision.HIGHEST
    assert len(products) == 95
    assert all(set(product.params["precision"]) == {highest} for product in products)


def test_blocks_begin_with_the_branch_that_is_tapped():
    assert BLOCKS["Mixed_6d"][0][0].name == "branch1x1"


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (8, 8, 3), (2, 8, 8, 4)])
def test_other_shapes_are_refused(made, shape):
    with pytest.raises(ValueError, match=r"are not \[batch, height, width, 3\]"):
        jax.eval_shape(InceptionV3().apply, nn.unbox(made), jax.ShapeDtypeStruct(shape, jnp.uint8))
