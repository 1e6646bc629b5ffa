"""Adversarial losses and the adaptive weight against direct computations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.losses.adversarial import (
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)


@pytest.mark.parametrize("shape", [(2, 3, 3, 1), (1, 1, 1, 1)])
def test_losses(shape):
    real, fake = 2 * np.random.default_rng(0).normal(size=(2, *shape))
    wanted = 0.5 * (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean())
    real, fake = jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32)
    np.testing.assert_allclose(hinge_discriminator_loss(real, fake), wanted, rtol=1e-5)
    np.testing.assert_allclose(generator_loss(fake), -np.float64(fake).mean(), rtol=1e-5)


def test_hinge_stops_pushing_what_is_told_apart():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-2.0, 0.5])
    by_real, by_fake = jax.grad(hinge_discriminator_loss, argnums=(0, 1))(real, fake)
    np.testing.assert_array_equal(by_real, [0.0, -0.25])
    np.testing.assert_array_equal(by_fake, [0.0, 0.25])
    np.testing.assert_array_equal(jax.grad(generator_loss)(fake), [-0.5, -0.5])


def test_adaptive_weight_of_a_linear_decoder():
    rng = np.random.default_rng(0)
    features, target, judge = rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), rng.normal(size=2)
    kernel = rng.normal(size=(3, 2))

    def fit(kernel):
        return jnp.square(features @ kernel - target).mean()

    def fool(kernel):
        return -(10.0 * (features @ kernel) @ judge).mean()

    gradients = jax.grad(fit)(jnp.asarray(kernel)), jax.grad(fool)(jnp.asarray(kernel))
    direct = [2 * features.T @ (features @ kernel - target) / target.size]
    direct.append(-10.0 * np.outer(features.mean(0), judge))
    norms = [np.sqrt((g**2).sum()) for g in direct]
    wanted = norms[0] / (norms[1] + 1e-4)
    assert 0 < wanted < 1
    np.testing.assert_allclose(adaptive_weight(*gradients), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("fit", "fool", "limit", "wanted"),
    [(3.0, 0.0, 1.0, 1.0), (0.0, 2.0, 1.0, 0.0), (3.0, 1.0, 1e4, 3 / 1.0001), (0.0, 0.0, 1.0, 0.0)],
)
def test_adaptive_weight_at_its_ends(fit, fool, limit, wanted):
    weight = adaptive_weight(jnp.array([fit]), jnp.array([fool]), limit)
    np.testing.assert_allclose(weight, wanted, rtol=1e-6)


def test_adaptive_weight_is_a_constant():
    gradient = jax.grad(lambda g: adaptive_weight(g, jnp.ones(2)))(jnp.full(2, 0.3))
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
