"""Adversarial losses for autoencoders, from a discriminator's logits (higher: more real)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def hinge_discriminator_loss(real: Array, fake: Array) -> Array:
    """Returns 0.5 (mean relu(1 - real) + mean relu(1 + fake)), a float32 scalar.

    real, fake: logits of any shape, of images and of reconstructions.
    Source: hinge loss (arXiv 1705.02894, equation 2) halved as in VQGAN (arXiv 2012.09841).
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean())


def generator_loss(fake: Array) -> Array:
    """Returns -mean(fake), a float32 scalar; fake: logits of reconstructions."""
    return -fake.astype(jnp.float32).mean()


def adaptive_weight(reconstruction: Array, adversarial: Array, limit: float = 1.0) -> Array:
    """Returns the weight that makes both losses pull equally hard on the last layer.

    reconstruction, adversarial: gradients of the two losses with respect to the decoder's last
    kernel (`LAST_KERNEL` of the model). Returns the float32 scalar
    clip(|reconstruction| / (|adversarial| + 1e-4), 0, limit), a constant for differentiation.
    Source: VQGAN (arXiv 2012.09841, equation 7); the limit of 1 is Binary Latent Diffusion's.
    """
    weight = _norm(reconstruction) / (_norm(adversarial) + 1e-4)
    return lax.stop_gradient(jnp.clip(weight, 0.0, limit))


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x.astype(jnp.float32).reshape(-1))
