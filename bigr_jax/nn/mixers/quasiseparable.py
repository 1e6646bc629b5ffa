"""Hydra's matrix as its paper compares it with the others: both directions share B and C."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.nn.hydra import Scan
from bigr_jax.nn.mixers.matrices import longest
from bigr_jax.nn.partition import named
from bigr_jax.ops.quasiseparable import Direction, quasiseparable

Array = jax.Array

# Glorot, of [length, 2 * state].
_GLOROT = nn.initializers.variance_scaling(1.0, "fan_avg", "normal", in_axis=(1, 2), out_axis=0)


class Quasiseparable(Scan):
    """Both directions share B and C, of heads * qk_dim channels, which are those of every head.

    Attributes: beside those of `nn.hydra.Scan`
      head_dim: by default 128, as published.
      qk_dim: channels of the state, for every head.
      length: the longest sequence that is to be served, where `learned`.
      learned: B and C are parameters, dt is constant; else they are made of the tokens.
      form: see `ops.quasiseparable`.

    Source: Hydra (arXiv 2407.09941), Table 2, and its official implementation.
    """

    head_dim: int = 128
    qk_dim: int = 16
    length: int = 0
    learned: bool = False
    form: str = "auto"

    def mix(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns the quasiseparable matrix times x."""
        heads = x.shape[2]
        state, names = heads * self.qk_dim, (None, "state")
        if self.learned:
            size = longest(self, x.shape[1])
            whole = self.param("BC", named(_GLOROT, "position", *names), (size, 2, state))
            pairs = jnp.broadcast_to(whole[: x.shape[1]], (*x.shape[:2], 2, state)).astype(x.dtype)
            dt = jnp.zeros((*x.shape[:2], 2, heads))
        else:
            pairs = nn.silu(self.projected(u, "BC", (2, state), names, mask))
            dt = self.linear(u, "dt", (2, heads), (None, "heads"))
        dt = self.steps(dt, mask)
        B, C = pairs[:, :, :1], pairs[:, :, 1:]
        forward, backward = (Direction(dt[:, :, i], B, C) for i in (0, 1))
        A, delta = self.rates(heads), self.diagonal(x)
        return quasiseparable(x, A, forward, backward, delta, form=self.form, chunk=self.chunk)
