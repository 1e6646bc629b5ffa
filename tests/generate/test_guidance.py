"""Classifier-free guidance on doubled batches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.generate.guidance import combine, pair, twice


def test_pairs_lie_next_to_each_other():
    conditional, null = jnp.arange(6.0).reshape(3, 2), jnp.array([[9.0, 9.0]])
    doubled = pair(conditional, null)
    np.testing.assert_array_equal(doubled[::2], conditional)
    np.testing.assert_array_equal(doubled[1::2], np.full((3, 2), 9.0))
    np.testing.assert_array_equal(twice(conditional), pair(conditional, conditional))
    np.testing.assert_array_equal(pair(jnp.arange(2), jnp.asarray(7)), [0, 7, 1, 7])


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.5, 1e3])
def test_combination(scale):
    rng = np.random.default_rng(0)
    conditional, null = rng.standard_normal((2, 3, 4, 5))
    ours = combine(pair(jnp.asarray(conditional), jnp.asarray(null)), scale)
    exact = null + scale * (conditional - null)
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6 * max(1, abs(scale)))


def test_the_ends_are_exact():
    conditional, null = jnp.array([[1e-3, 3.0]]), jnp.array([[700.0, -1e-5]])
    np.testing.assert_array_equal(combine(pair(conditional, null), 1.0), conditional)
    np.testing.assert_array_equal(combine(pair(conditional, null), 0.0), null)
