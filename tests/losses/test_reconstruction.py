"""Reconstruction losses against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.losses.reconstruction import (
    absolute_error,
    code_variance,
    reconstruction,
    squared_error,
)


@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (1, 1, 1, 1), (2, 7)])
def test_errors_per_image(shape):
    x, y = np.random.default_rng(0).normal(size=(2, *shape))
    axes = tuple(range(1, len(shape)))
    got = absolute_error(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(got, np.abs(x - y).mean(axes), rtol=1e-5)
    got = squared_error(jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16))
    assert got.dtype == jnp.float32
    rounded = [np.float64(jnp.asarray(v, jnp.bfloat16)) for v in (x, y)]
    np.testing.assert_allclose(got, ((rounded[0] - rounded[1]) ** 2).mean(axes), rtol=1e-5)


def test_code_variance_and_its_gradient():
    p = np.random.default_rng(0).uniform(size=(2, 3, 4))
    s = 1 / (1 + np.exp(-p))
    value, gradient = jax.value_and_grad(code_variance)(jnp.asarray(p, jnp.float32))
    np.testing.assert_allclose(value, (s * (1 - s)).mean(), rtol=1e-6)
    wanted = (1 - 2 * s) * s * (1 - s) / p.size
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-9)


def test_names():
    assert reconstruction("l1") is absolute_error
    with pytest.raises(UserError, match=r"reconstruction='l3' is not known.*legal: l1, l2"):
        reconstruction("l3")


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 2\)"):
        absolute_error(jnp.zeros((1, 2)), jnp.zeros((2, 2)))
