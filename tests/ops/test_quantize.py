"""Binary codes and their straight-through gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.ops.quantize import bernoulli, binarize

units = st.floats(0, 1, width=32, exclude_max=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(units, units), min_size=7, max_size=7))
def test_codes_are_exact_and_follow_the_uniforms(pairs):
    p, u = np.array(pairs, np.float32).T
    codes = binarize(jnp.asarray(p), jnp.asarray(u))
    np.testing.assert_array_equal(codes, (u < p).astype(np.float32))
    np.testing.assert_array_equal(binarize(jnp.asarray(p)), (p > 0.5).astype(np.float32))


def test_a_half_is_zero_and_certainty_is_certain():
    np.testing.assert_array_equal(binarize(jnp.array([0.5, 0.0, 1.0])), [0, 0, 1])
    draws = bernoulli(jax.random.key(0), jnp.array([0.0, 1.0] * 500))
    np.testing.assert_array_equal(draws, [0, 1] * 500)


def test_gradient_is_that_of_the_probabilities():
    rng = np.random.default_rng(0)
    logits, u, pull = rng.normal(size=(3, 2, 5)).astype(np.float32)

    def pulled(logits, uniforms):
        return (binarize(jax.nn.sigmoid(logits), uniforms) ** 2 * pull).sum()

    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for uniforms, codes in ((None, p > 0.5), (jnp.asarray(u), u < p)):
        # d/db of b^2 w is 2 b w, taken at the code, then dp/dlogit = p (1 - p).
        wanted = 2 * codes * pull * p * (1 - p)
        np.testing.assert_allclose(jax.grad(pulled)(logits, uniforms), wanted, atol=1e-6)


def test_mean_of_draws_is_the_probability_and_keys_decide():
    p = jnp.tile(jnp.array([0.1, 0.5, 0.93]), (20_000, 1))
    draws = bernoulli(jax.random.key(3), p)
    assert set(np.unique(draws)) == {0.0, 1.0}
    # Five standard errors of 20,000 draws are at most 0.018.
    np.testing.assert_allclose(draws.mean(0), p[0], atol=0.018)
    np.testing.assert_array_equal(draws, bernoulli(jax.random.key(3), p))
    assert (draws != bernoulli(jax.random.key(4), p)).any()


def test_dtype_is_kept():
    assert binarize(jnp.array([0.7], jnp.bfloat16)).dtype == jnp.bfloat16
