"""The regularizer and its targets against float64 NumPy, and what holds of them exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.losses import early_learning as elr


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def drawn(seed, rows=3, classes=5, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * scale
    targets = softmax(rng.normal(size=(rows, classes)) * 3) * rng.uniform(size=(rows, 1))
    return logits.astype("f4"), targets.astype("f4")


SLOPE = jax.jit(jax.grad(lambda logits, targets: elr.early_learning(logits, targets).sum()))


@given(st.integers(0, 1000), st.sampled_from([(1, 2), (3, 5)]))
def test_term_and_gradient_are_those_of_the_formulas(seed, shape):
    logits, targets = drawn(seed, *shape, scale=1.0)
    p, t = softmax(logits.astype("f8")), targets.astype("f8")
    agreed = (t * p).sum(-1, keepdims=True)
    found = jax.jit(elr.early_learning)(logits, targets)
    np.testing.assert_allclose(found, np.log(1 - agreed[:, 0]), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(
        SLOPE(logits, targets), p * (agreed - t) / (1 - agreed), rtol=1e-4, atol=1e-5
    )


def test_targets_have_no_gradient():
    logits, targets = drawn(0)
    slope = jax.grad(lambda t: elr.early_learning(logits, t).sum())(jnp.asarray(targets))
    assert not slope.any()
    through = jax.grad(lambda x: elr.updated(targets, elr.beliefs(x), 0.7).sum())(logits)
    assert not through.any()


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 30))
def test_after_n_equal_beliefs_targets_are_as_far_on_their_way(seed, momentum, n):
    logits, _ = drawn(seed, scale=4.0)
    p = np.clip(softmax(logits.astype("f8")), 1e-4, 1 - 1e-4)
    p /= p.sum(-1, keepdims=True)
    targets = jnp.zeros(logits.shape)
    for _ in range(n):
        targets = elr.updated(targets, elr.beliefs(logits), momentum)
    np.testing.assert_allclose(targets, (1 - momentum**n) * p, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_the_surest_network_leaves_everything_finite(size):
    logits = jnp.array([[size, -size, 0.0]])
    targets = jnp.zeros((1, 3))
    for _ in range(100):
        targets = elr.updated(targets, elr.beliefs(logits), 0.5)
    value, slope = jax.value_and_grad(lambda x: elr.early_learning(x, targets).sum())(logits)
    assert np.log(1e-4) - 0.05 < value < np.log(4e-4)
    # All three are clipped.
    np.testing.assert_array_equal(slope, np.zeros((1, 3)))
    assert targets.min() > 0 and targets.sum() <= 1 + 1e-6


def test_no_target_no_term():
    logits, _ = drawn(3)
    zeros = jnp.zeros(logits.shape)
    value, slope = jax.value_and_grad(lambda x: elr.early_learning(x, zeros).sum())(logits)
    assert value == 0 and not slope.any()
    np.testing.assert_array_equal(elr.updated(zeros, elr.beliefs(logits), 1.0), zeros)


def test_products_of_half_precision_are_judged_in_single():
    logits = jnp.asarray(drawn(4)[0], jnp.bfloat16)
    assert elr.clipped(logits).dtype == jnp.float32
    assert elr.early_learning(logits, jnp.zeros(logits.shape)).dtype == jnp.float32
