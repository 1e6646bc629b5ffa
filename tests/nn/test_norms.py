from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.nn.norms import RMSNorm


def oracle(x, scale, epsilon=1e-5):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def draw(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 1)])
def test_matches_float64(shape):
    x, scale = draw(0, shape), draw(1, shape[-1:])
    y = RMSNorm().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(y, oracle(x, scale), atol=2e-6)


def test_scale_starts_at_one_and_zero_stays_zero():
    variables = RMSNorm().init(jax.random.key(0), np.zeros((1, 5), np.float32))
    assert variables["params"]["scale"].names == ("embed",)
    np.testing.assert_array_equal(variables["params"]["scale"].value, np.ones(5))
    assert not RMSNorm().apply(variables, np.zeros((1, 5), np.float32)).any()


def test_gradients_match_differences_of_the_oracle():
    x, scale, weight, step = (draw(i, (3, 5)) for i in range(4))
    scale, step_scale = scale[0], draw(4, (5,))
    loss = lambda x, scale: (RMSNorm().apply({"params": {"scale": scale}}, x) * weight).sum()  # noqa: E731
    gx, gscale = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, scale)
    wide, scale, e = x.astype(np.float64), scale.astype(np.float64), 1e-6
    slope = (oracle(wide + e * step, scale) - oracle(wide - e * step, scale)) / (2 * e)
    np.testing.assert_allclose((gx * step).sum(), (slope * weight).sum(), rtol=1e-4)
    slope = (oracle(x, scale + e * step_scale) - oracle(x, scale - e * step_scale)) / (2 * e)
    np.testing.assert_allclose((gscale * step_scale).sum(), (slope * weight).sum(), rtol=1e-4)


def test_low_precision_is_normalised_in_float32():
    x = jnp.asarray(draw(5, (2, 300)) + 100, jnp.bfloat16)
    y = RMSNorm(dtype=jnp.bfloat16).apply({"params": {"scale": np.ones(300, np.float32)}}, x)
    assert y.dtype == jnp.bfloat16
    wanted = jnp.asarray(oracle(np.asarray(x, np.float32), 1.0), jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), wanted.astype(jnp.float32))
