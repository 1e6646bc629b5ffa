"""Class labels as vectors, with a null class for guidance."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.nn.partition import named

Array = jax.Array


class ClassEmbed(nn.Module):
    """A table of `classes` vectors and one more for the null class, whose label is `classes`.

    labels: int [batch] -> float32 [batch, width].
    """

    classes: int
    width: int

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        # Not "vocab": with the null class the rows divide over no useful mesh axis.
        init = named(nn.initializers.normal(0.02), None, "embed")
        return self.param("table", init, (self.classes + 1, self.width))[labels]


def drop_labels(key: Array, labels: Array, null: int, rate: float) -> Array:
    """Replaces each label by the null class with probability `rate`.

    labels: int [batch] -> as labels.
    Source: classifier-free guidance (arXiv 2207.12598), algorithm 1.
    """
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), null, labels)
