"""Ternary weights, 8-bit activations and their packing, against float64 NumPy and by properties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.ops.quantize import straight_through
from bigr_jax.ops.ternary import (
    FORMS,
    MEASURES,
    absmax_quantise,
    median_magnitude,
    pack_ternary,
    standardise,
    ternary_quantise,
    unpack_ternary,
)

median = jax.jit(median_magnitude, static_argnums=1)
quantise = jax.jit(ternary_quantise, static_argnames=("measure", "axes", "strength"))
absmax = jax.jit(absmax_quantise, static_argnames=("axes", "bits", "strength"))
finite = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def oracle(weights, measure):
    """Returns codes and scale of one matrix in float64."""
    size = np.abs(weights.astype(np.float64)).ravel()
    found = {"mean": size.mean(), "median": np.sort(size)[(size.size - 1) // 2], "max": size.max()}
    scale = 1 / max(found[measure], 1e-5)
    return np.clip(np.rint(weights * scale), -1, 1), scale


@given(st.lists(finite, min_size=6, max_size=6))
def test_the_median_is_an_element_and_the_lower_of_two(values):
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(median(x, (0,)), np.sort(np.abs(x))[2:3])
    np.testing.assert_array_equal(median(x[:1], (0,)), np.abs(x[:1]))


@pytest.mark.parametrize("axes", [(0, 1, 2), (-3, -1), (1,)])
def test_medians_of_several_matrices(axes):
    x = draw(0, 5, 3, 4)
    moved = np.abs(np.moveaxis(x, axes, range(len(axes)))).reshape(
        np.prod([x.shape[a] for a in axes]), *np.delete(x.shape, axes)
    )
    wanted = np.sort(moved, 0)[(len(moved) - 1) // 2]
    found = median(x, axes)
    np.testing.assert_array_equal(np.squeeze(found), wanted)
    assert found.shape == tuple(1 if i in np.mod(axes, 3) else n for i, n in enumerate(x.shape))


@pytest.mark.parametrize("measure", MEASURES)
def test_codes_and_scales_match_float64(measure):
    for seed, shape in enumerate([(24, 16), (1, 1), (7, 5)]):
        weights = draw(seed, *shape)
        codes, scale = quantise(weights, measure)
        wanted, wanted_scale = oracle(weights, measure)
        np.testing.assert_array_equal(codes, wanted)
        np.testing.assert_allclose(scale, wanted_scale, rtol=1e-6)
        assert scale.shape == (1, 1)


def test_every_matrix_has_its_own_scale():
    weights = draw(1, 6, 3, 4) * np.array([1.0, 10.0, 0.1], np.float32)[:, None]
    codes, scale = quantise(weights, "median", axes=(0, 2))
    for place in range(3):
        wanted, wanted_scale = oracle(weights[:, place], "median")
        np.testing.assert_array_equal(codes[:, place], wanted)
        np.testing.assert_allclose(scale[0, place, 0], wanted_scale, rtol=1e-6)


def test_zeros_of_normal_weights_are_as_many_as_theory_has_them():
    weights = draw(2, 400, 500)
    # P(|w| < half the measure): the median's is 0.6745, the mean's sqrt(2 / pi).
    for measure, share in (("median", 0.2641), ("mean", 0.3101)):
        # Five standard errors of 200,000 draws are 0.005.
        assert abs(float((quantise(weights, measure)[0] == 0).mean()) - share) < 0.005
    assert float((quantise(weights, "max")[0] == 0).mean()) > 0.95


def test_weights_of_zero_and_halves():
    codes, scale = quantise(jnp.zeros((3, 2)), "median")
    np.testing.assert_array_equal(codes, 0)
    np.testing.assert_allclose(scale, 1e5)
    # The scale is 1: a half goes to the even neighbour.
    codes, _ = quantise(jnp.array([[0.5, -0.5, 1.0, -1.0, 1.5, 2.5]]), "median")
    np.testing.assert_array_equal(codes, [[0, 0, 1, -1, 1, 1]])


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.0625, 64, width=32))
def test_codes_do_not_see_the_size_of_weights(seed, factor):
    weights = draw(seed, 6, 5)
    codes, scale = quantise(weights, "median")
    other, smaller = quantise(weights * np.float32(factor), "median")
    # Where a product is rounded the other way a code may cross a border; none is that close.
    border = np.abs(np.abs(weights * scale) - 0.5).min()
    assert border < 1e-5 or (codes == other).all()
    np.testing.assert_allclose(smaller * factor, scale, rtol=1e-5)


def test_activations_match_float64():
    x = draw(3, 4, 9) * 3
    codes, scale = absmax(x)
    wanted_scale = 128 / np.abs(x.astype(np.float64)).max(-1, keepdims=True)
    np.testing.assert_allclose(scale, wanted_scale, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.clip(np.rint(x * wanted_scale), -128, 127))
    assert np.abs(codes).max() >= 127
    low, _ = absmax(x, bits=2)
    assert set(np.unique(low)) <= {-2.0, -1.0, 0.0, 1.0}
    np.testing.assert_array_equal(absmax(jnp.zeros((2, 3)))[0], 0)


def test_activations_share_a_scale_along_axes():
    x = draw(4, 2, 3, 4)
    _, scale = absmax(x, axes=(-2, -1))
    np.testing.assert_allclose(scale[:, 0, 0], 128 / np.abs(x).max((1, 2)), rtol=1e-6)
    assert scale.shape == (2, 1, 1)


def test_standardise_matches_float64():
    x = draw(5, 3, 4, 5) * 7 + 2
    for axes in ((-1,), (-2, -1)):
        wide = x.astype(np.float64)
        wide = wide - wide.mean(axes, keepdims=True)
        wanted = wide / np.sqrt((wide**2).mean(axes, keepdims=True) + 1e-5)
        np.testing.assert_allclose(standardise(x, axes), wanted, atol=2e-6)


@pytest.mark.parametrize("strength", [1.0, 0.25, 0.0])
def test_gradients_pass_also_where_it_was_clipped(strength):
    weights, pull = draw(6, 5, 4), draw(7, 5, 4)
    _, scale = oracle(weights, "median")

    def pulled(x):
        codes, scale = ternary_quantise(x, "median", strength=strength)
        return (codes * pull / scale).sum()

    np.testing.assert_allclose(jax.grad(pulled)(weights), pull, rtol=1e-6)
    codes, _ = quantise(weights, "median", strength=strength)
    value = weights * scale
    wanted = value + strength * (np.clip(np.rint(value), -1, 1) - value)
    np.testing.assert_allclose(codes, wanted, atol=1e-6)
    # d/dx of the activation's code is its scale, a constant.
    x = draw(8, 3, 4)
    slope = jax.grad(lambda x: (absmax_quantise(x, strength=strength)[0] * pull[:3]).sum())(x)
    np.testing.assert_allclose(slope, pull[:3] * 128 / np.abs(x).max(-1, keepdims=True), rtol=1e-6)


@given(st.lists(st.tuples(finite, finite), min_size=5, max_size=5))
def test_straight_through_is_exactly_the_target(pairs):
    value, target = np.array(pairs, np.float32).T
    np.testing.assert_array_equal(straight_through(jnp.array(value), jnp.array(target)), target)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 4, 5, 20, 23])
def test_packing_is_undone(form, length):
    codes = np.random.default_rng(length).integers(-1, 2, (3, length)).astype(np.int8)
    packed = pack_ternary(codes, form)
    base, count = FORMS[form]
    digits = np.zeros((3, -(-length // count) * count), int)
    digits[:, :length] = codes + 1
    wanted = (digits.reshape(3, -1, count) * base ** np.arange(count)).sum(-1)
    np.testing.assert_array_equal(packed, wanted)
    assert packed.dtype == np.uint8
    found = unpack_ternary(packed, length, form)
    np.testing.assert_array_equal(found, codes)
    assert found.dtype == np.int8


def test_products_of_codes_are_exact_in_float32_and_int32():
    rng = np.random.default_rng(9)
    x = rng.integers(-128, 128, (4, 3000)).astype(np.int8)
    weights = rng.integers(-1, 2, (3000, 3)).astype(np.int8)
    wanted = x.astype(np.int64) @ weights.astype(np.int64)
    dot = functools.partial(jax.lax.dot_general, dimension_numbers=(((1,), (0,)), ((), ())))
    sums = dot(x, weights, preferred_element_type=jnp.int32)
    np.testing.assert_array_equal(sums, wanted)
    np.testing.assert_array_equal(dot(x.astype(np.float32), weights.astype(np.float32)), wanted)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="measure of the weights"):
        ternary_quantise(jnp.ones((2, 2)), "media")
    for call in (pack_ternary, functools.partial(unpack_ternary, length=1)):
        with pytest.raises(UserError, match="form of packed weights"):
            call(jnp.zeros(1, jnp.uint8), form="3bit")
    with pytest.raises(ValueError, match=r"expected uint8 \[\.\.\., 2\] for 6 weights"):
        unpack_ternary(jnp.zeros(3, jnp.uint8), 6, "2bit")
    with pytest.raises(ValueError, match="int32"):
        unpack_ternary(jnp.zeros(2, jnp.int32), 6, "2bit")
