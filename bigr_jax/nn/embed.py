"""Conditions as vectors: class labels or texts, each with a null condition for guidance."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.linear import Linear
from bigr_jax.nn.partition import named

Array = jax.Array


class Text(NamedTuple):
    """Texts as the features that some encoder gave them.

    features: float [batch, length, features], mask: bool [batch, length], True = a token; a text
    without any is the null condition.
    """

    features: Array
    mask: Array


class Prefix(NamedTuple):
    """What a transformer is told: tokens float32 [batch, length, width] in front of its own, their
    summary float32 [batch, 1, width], and mask bool [batch, length], True = a token; None: all are.
    """

    tokens: Array
    pooled: Array
    mask: Array | None = None


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


class TextEmbed(nn.Module):
    """Texts of at most `length` tokens as prefixes: an MLP on every token, and one vector of all.

    The null text is noise that is never learnt: the buffer "null", N(0, 1 / features). A token's
    vector is Linear(gelu(Linear(x))), without biases; the summary is a linear map of their mean.
    Source: the caption embedder of LlamaGen (arXiv 2406.06525); the summary is our addition, for
    BiGR's adaptive norms (arXiv 2410.14672).

    Attributes:
      length, features: of the texts; shorter ones are padded.
      width: of the prefix, and of the MLP.
      dtype: of the matrix products; what is returned is float32.
    """

    length: int
    features: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: Text) -> Prefix:
        """Returns the prefix of texts [batch, length, features].

        Raises ValueError for texts of another shape.
        """
        shape = (len(text.features), self.length, self.features)
        if text.features.shape != shape or text.mask.shape != shape[:2]:
            raise ValueError(
                f"text {text.features.shape}, mask {text.mask.shape}: expected {shape}, {shape[:2]}"
            )
        null = self.variable("buffers", "null", self._noise).value
        told = text.mask.any(axis=1, keepdims=True)
        mask = text.mask | ~told
        x = jnp.where(told[..., None], text.features.astype(jnp.float32), null)
        x = Linear((self.width,), (None, "mlp"), dtype=self.dtype, name="mlp_in")(x)
        x = nn.gelu(x, approximate=True)
        x = Linear((self.width,), ("mlp", "embed"), dtype=self.dtype, name="mlp_out")(x)
        x = x.astype(jnp.float32)
        mean = jnp.where(mask[..., None], x, 0).sum(1, keepdims=True)
        mean = mean / mask.sum(1)[:, None, None]
        summary = ("embed", "mlp")
        pooled = Linear((self.width,), summary, bias=True, dtype=self.dtype, name="pooled")(mean)
        return Prefix(x, pooled.astype(jnp.float32), mask)

    def _noise(self) -> Array:
        shape = (self.length, self.features)
        return jax.random.normal(self.make_rng("params"), shape) * self.features**-0.5


def drop_condition(key: Array, condition: Any, null: Any, rate: float) -> Any:
    """Replaces each row's condition by the null condition with probability `rate`.

    condition, null: trees of arrays [batch, ...], labels or `Text` -> as condition.
    Source: classifier-free guidance (arXiv 2207.12598), algorithm 1.
    """
    rows = len(jax.tree.leaves(condition)[0])
    dropped = jax.random.bernoulli(key, rate, (rows,))

    def drop(x: Array, none: Array) -> Array:
        return jnp.where(dropped.reshape(rows, *(1,) * (x.ndim - 1)), none, x)

    return jax.tree.map(drop, condition, null)
