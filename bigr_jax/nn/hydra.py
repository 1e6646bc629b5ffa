"""The Hydra mixer: a bidirectional state-space layer whose matrix is quasiseparable."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.errors import UserError
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.norms import RMSNorm
from bigr_jax.nn.partition import named
from bigr_jax.nn.short_conv import ShortConv
from bigr_jax.ops.quasiseparable import Direction, quasiseparable

Array = jax.Array


class Hydra(nn.Module):
    """Mixes the tokens of a sequence in both directions, in time linear in its length.

    Both directions share the input, its convolution, the decay rates and the gate; B, C and the
    step sizes dt are their own. Order is seen without positions. Padding has no influence on the
    tokens, unlike in the official implementation, where it is what a token of zeros becomes after
    the convolution's bias.

    Attributes:
      head_dim: P, channels of a head; it divides expand * width.
      state: N, channels of the state.
      groups: G, groups of heads with the same B and C.
      expand: inner channels for each of the width.
      conv: odd number of taps of the convolution; the state that a token reads is its neighbour's,
        so that with less than 5 it does not see two tokens as a pair.
      bias: of the first and the last product.
      learn_start: the states in which the scans begin are learned, [H, P, N], the same for both.
      chunk, form: see `ops.quasiseparable`.
      dropout: rate on the result.
      dtype: of the products; steps, decays and states are float32.

    Source: Hydra (arXiv 2407.09941), section 3 and appendix; parameters as officially initialised,
    A = -1, D = 1, dt from 0.001 to 0.1.
    """

    head_dim: int = 64
    state: int = 64
    groups: int = 1
    expand: int = 2
    conv: int = 7
    bias: bool = False
    learn_start: bool = False
    chunk: int = 64
    form: str = "streamed"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        u: Array,
        mask: Array | None = None,
        rope: Array | np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Returns the mixed tokens, `dtype` [batch, length, width].

        u: [batch, length, width], mask: bool [batch, length], False = padding, rope: ignored.
        """
        del rope
        width = u.shape[-1]
        heads = self.heads(width)
        inner, outer = ("heads", "head_dim"), ("embed",)

        def project(name: str, features: tuple[int, ...], names: tuple[str | None, ...]) -> Array:
            return Linear(features, (*outer, *names), self.bias, dtype=self.dtype, name=name)(u)

        gate = project("gate", (heads, self.head_dim), inner)
        x = project("x", (heads, self.head_dim), inner)
        # Of each direction B and C.
        sides = (None, None, None, "state")
        pairs = project("BC", (2, 2, self.groups, self.state), sides)
        dt = project("dt", (2, heads), (None, "heads"))
        if mask is not None:
            x = jnp.where(mask[..., None, None], x, 0)
            pairs = jnp.where(mask[..., None, None, None, None], pairs, 0)
        x = nn.silu(ShortConv(self.conv, inner, name="conv_x")(x))
        pairs = nn.silu(ShortConv(self.conv, sides, name="conv_BC")(pairs))
        forward, backward = self._directions(dt, pairs, mask)
        y = quasiseparable(
            x,
            self._rates(heads),
            forward,
            backward,
            self._diagonal(x),
            form=self.form,
            chunk=self.chunk,
            initial_state=self._start(heads, len(u)),
        )
        y = RMSNorm(name="norm")(y.reshape(*y.shape[:2], -1))
        y = (y * nn.silu(gate.astype(jnp.float32)).reshape(y.shape)).astype(self.dtype)
        y = Linear((width,), ("mlp", "embed"), self.bias, dtype=self.dtype, name="out")(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)

    def heads(self, width: int) -> int:
        """Returns H, the number of heads at a width; raises UserError where it is not whole."""
        inner = self.expand * width
        if inner % self.head_dim or (inner // self.head_dim) % self.groups:
            raise UserError(
                f"hydra: expand * width = {inner} does not divide into heads of {self.head_dim} "
                f"channels in {self.groups} group(s)"
            )
        return inner // self.head_dim

    def _directions(
        self, dt: Array, pairs: Array, mask: Array | None
    ) -> tuple[Direction, Direction]:
        offset = self.param("dt_bias", named(_dt_bias, "heads"), dt.shape[-1:])
        dt = nn.softplus(dt.astype(jnp.float32) + offset)
        if mask is not None:
            dt = jnp.where(mask[..., None, None], dt, 0.0)
        one, two = (Direction(dt[:, :, i], pairs[:, :, i, 0], pairs[:, :, i, 1]) for i in (0, 1))
        return one, two

    def _rates(self, heads: int) -> Array:
        return -jnp.exp(self.param("A_log", named(nn.initializers.zeros, "heads"), (heads,)))

    def _diagonal(self, x: Array) -> Array:
        names = ("heads", "head_dim", None)
        delta = Linear(x.shape[2:3], names, dtype=self.dtype, name="skip")(x)
        return delta + self.param("D", named(nn.initializers.ones, "heads"), x.shape[2:3])

    def _start(self, heads: int, batch: int) -> Array | None:
        if not self.learn_start:
            return None
        names = ("heads", "head_dim", "state")
        shape = heads, self.head_dim, self.state
        start = self.param("start", named(nn.initializers.zeros, *names), shape)
        return jnp.broadcast_to(start, (batch, *shape))


def _dt_bias(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """The inverse softplus of steps spread evenly in their logarithm from 0.001 to 0.1."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    dt = jnp.maximum(dt, 1e-4)
    return dt + jnp.log(-jnp.expm1(-dt))
