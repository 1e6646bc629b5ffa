from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.train import ema


@pytest.mark.parametrize("warmup", [False, True])
def test_equals_a_float64_recurrence(warmup):
    rng, decay = np.random.default_rng(0), 0.9
    expected = {"a": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}
    average = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), expected)
    step = jax.jit(lambda e, p, i: ema.update(e, p, decay, i, warmup))
    for index in range(200):
        params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), expected)
        rate = min(decay, (1 + index) / (10 + index)) if warmup else decay
        expected = jax.tree.map(lambda e, p, r=rate: r * e + (1 - r) * p, expected, params)
        average = step(average, params, jnp.int32(index))
    for got, want in zip(jax.tree.leaves(average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_stays_float32_beside_bfloat16_parameters():
    params = {"a": jnp.full(4, 1.0, jnp.bfloat16)}
    average = {"a": jnp.full(4, 1.0, jnp.float32)}
    for index in range(3):
        average = ema.update(average, {"a": params["a"] + 1}, 0.999, index)
    assert average["a"].dtype == jnp.float32
    # bfloat16 would round every one of these steps away.
    np.testing.assert_allclose(average["a"], 2 - 0.999**3, rtol=1e-6)


def test_constant_parameters_are_a_fixed_point():
    params = {"a": jnp.array([0.1, -3.0, 7.7])}
    average = ema.update(params, params, 0.5, 0)
    np.testing.assert_array_equal(average["a"], params["a"])
