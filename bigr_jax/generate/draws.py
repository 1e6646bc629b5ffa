"""Where a masked sampler's random numbers come from: a key, or a recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

Array = jax.Array


class Draws(Protocol):
    """The numbers of one generation of `batch` sequences of N tokens with K bits.

    Every method may be called with traced numbers and gives the same array for the same ones. All
    arrays are over all tokens, used or not: that makes a result independent of what is skipped.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, N, K)."""

    def order(self) -> Array:
        """Returns uniform draws [batch, N], whose ranks are the random order."""

    def denoise(self, iteration: Array | int, step: Array | int) -> Array:
        """Returns the uniform draws [batch, N, K] of the noisy bits at a denoising step, from 0."""

    def gumbel(self, iteration: Array | int) -> Array:
        """Returns standard Gumbel noise [batch, N] for the confidences."""

    def bits(self, iteration: Array | int) -> Array:
        """Returns the uniform draws [batch, N, K] of the final bits."""


@dataclasses.dataclass(frozen=True)
class KeyDraws:
    """Draws that are folded from one key.

    Attributes:
      key: a typed key.
      shape: (batch, N, K).
    """

    key: Array
    shape: tuple[int, int, int]

    def order(self) -> Array:
        """See `Draws`."""
        return jax.random.uniform(self._key(0), self.shape[:2])

    def denoise(self, iteration: Array | int, step: Array | int) -> Array:
        """See `Draws`."""
        return jax.random.uniform(jax.random.fold_in(self._key(1, iteration), step), self.shape)

    def gumbel(self, iteration: Array | int) -> Array:
        """See `Draws`."""
        return jax.random.gumbel(self._key(2, iteration), self.shape[:2])

    def bits(self, iteration: Array | int) -> Array:
        """See `Draws`."""
        return jax.random.uniform(self._key(3, iteration), self.shape)

    def _key(self, purpose: int, iteration: Array | int = 0) -> Array:
        return jax.random.fold_in(jax.random.fold_in(self.key, purpose), iteration)


@dataclasses.dataclass(frozen=True)
class RecordedDraws:
    """Draws that were written down, leading axes iteration (and step).

    Attributes:
      denoise_uniforms: [iterations, steps, batch, N, K].
      gumbels: [iterations, batch, N].
      bit_uniforms: [iterations, batch, N, K].
      order_uniforms: [batch, N], for the random order; None: the order is another one.
    """

    denoise_uniforms: Array
    gumbels: Array
    bit_uniforms: Array
    order_uniforms: Array | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Draws`."""
        batch, length, bits = self.bit_uniforms.shape[1:]
        return batch, length, bits

    def order(self) -> Array:
        """See `Draws`."""
        if self.order_uniforms is None:
            raise ValueError("the random order needs order_uniforms")
        return self.order_uniforms

    def denoise(self, iteration: Array | int, step: Array | int) -> Array:
        """See `Draws`."""
        return jnp.asarray(self.denoise_uniforms)[iteration, step]

    def gumbel(self, iteration: Array | int) -> Array:
        """See `Draws`."""
        return jnp.asarray(self.gumbels)[iteration]

    def bits(self, iteration: Array | int) -> Array:
        """See `Draws`."""
        return jnp.asarray(self.bit_uniforms)[iteration]


@dataclasses.dataclass(frozen=True)
class RowDraws:
    """Draws of which every image has its own key: what an image gets depends on no other.

    Attributes:
      keys: typed keys [batch].
      tokens: (N, K).
    """

    keys: Array
    tokens: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Draws`."""
        return len(self.keys), *self.tokens

    def order(self) -> Array:
        """See `Draws`."""
        return self._rows(lambda draws: draws.order())

    def denoise(self, iteration: Array | int, step: Array | int) -> Array:
        """See `Draws`."""
        return self._rows(lambda draws: draws.denoise(iteration, step))

    def gumbel(self, iteration: Array | int) -> Array:
        """See `Draws`."""
        return self._rows(lambda draws: draws.gumbel(iteration))

    def bits(self, iteration: Array | int) -> Array:
        """See `Draws`."""
        return self._rows(lambda draws: draws.bits(iteration))

    def _rows(self, draw: Callable[[KeyDraws], Array]) -> Array:
        return jax.vmap(lambda key: draw(KeyDraws(key, (1, *self.tokens)))[0])(self.keys)
