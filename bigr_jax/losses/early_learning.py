"""Early-learning regularization: what a network believed of an example before it learnt its label
by heart.

Source: Liu et al., arXiv 2007.00151, eq. 6 and 9, and its official code, where what is clipped is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

# Probabilities stay this far from 0 and 1, which keeps the logarithm finite.
MARGIN = 1e-4


def clipped(logits: Array) -> Array:
    """Returns the softmax within [1e-4, 1 - 1e-4], without a gradient outside.

    logits: [..., C] -> float32 [..., C]
    """
    return jnp.clip(jax.nn.softmax(logits.astype(jnp.float32)), MARGIN, 1 - MARGIN)


def beliefs(logits: Array) -> Array:
    """Returns what targets move toward: clipped probabilities that sum to 1, without a gradient.

    logits: [..., C] -> float32 [..., C]
    """
    found = jax.lax.stop_gradient(clipped(logits))
    return found / found.sum(-1, keepdims=True)


def updated(targets: Array, beliefs: Array, momentum: float) -> Array:
    """Returns momentum * targets + (1 - momentum) * beliefs (eq. 9), all float32 [..., C].

    Targets begin as 0 and are not corrected for that: after n equal beliefs p they are
    (1 - momentum^n) p, so that the regularizer sets in slowly.
    """
    return momentum * targets + (1 - momentum) * beliefs


def early_learning(logits: Array, targets: Array) -> Array:
    """Returns log(1 - <targets, p>) of every example (eq. 6): the less, the more p agrees.

    Its slope along the logits is p_k (<t, p> - t_k) / (1 - <t, p>) where nothing is clipped. It
    takes from the cross-entropy the gradient of labels that contradict the targets, and pushes on
    where they agree. The targets, updated already by these logits, have no gradient.
    logits: [..., C]; targets: float32 [..., C], sums up to 1 -> float32 [...], finite, at most 0
    """
    agreed = jax.lax.stop_gradient(targets) * clipped(logits)
    return jnp.log(1 - agreed.sum(-1))
