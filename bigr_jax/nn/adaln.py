"""Adaptive normalisation: a condition shifts, scales and gates the residual branches.

A modulation holds six vectors: shift, scale and gate of the token mixer, then of the feed-forward
layer. Its larger part is computed once for all layers (adaLN-single of PixArt-alpha, arXiv
2310.00426, section 2.3); every layer adds an offset of its own.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.linear import Linear
from bigr_jax.nn.partition import named

Array = jax.Array


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Returns x (1 + scale) + shift."""
    return x * (1 + scale) + shift


class SharedModulation(nn.Module):
    """The part of the modulation that all layers share: a linear map of silu(condition).

    condition: [batch, 1, width] -> float32 [batch, 1, 6, width], initially zero.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: Array) -> Array:
        y = Linear(
            (6, condition.shape[-1]),
            ("embed", None, "modulation"),
            bias=True,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="linear",
        )(nn.silu(condition))
        return y.astype(jnp.float32)


class ModulationOffset(nn.Module):
    """The part of the modulation that belongs to one layer.

    shared: [batch, 1, 6, width] -> shared + offset. The offset [6, width] is initially
    N(0, 1 / width), so that no gate starts closed.
    """

    @nn.compact
    def __call__(self, shared: Array) -> Array:
        width = shared.shape[-1]
        init = named(nn.initializers.normal(width**-0.5), None, "embed")
        return shared + self.param("offset", init, (6, width))
