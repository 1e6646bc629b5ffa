"""The Hydra mixer: a bidirectional state-space layer whose matrix is quasiseparable."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.partition import named
from bigr_jax.nn.shell import Shell, hidden
from bigr_jax.ops.quasiseparable import Direction, quasiseparable

Array = jax.Array


class Scan(Shell):
    """What layers that scan have in common: steps, rates of decay, and a diagonal.

    Attributes: beside those of `nn.shell`
      chunk: tokens that are multiplied at once; None: as `ops.scan_choice` has it.
    """

    chunk: int | None = None

    def steps(self, dt: Array, mask: Array | None) -> Array:
        """Returns softplus(dt + bias), float32, as dt [batch, length, ..., heads], 0 at the
        padding; makes the bias, so that steps are initially spread from 0.001 to 0.1.
        """
        bias = self.param("dt_bias", named(_dt_bias, "heads"), dt.shape[-1:])
        return hidden(nn.softplus(dt.astype(jnp.float32) + bias), mask)

    def rates(self, heads: int) -> Array:
        """Returns A of every head, [heads], initially -1; makes the parameter."""
        return -jnp.exp(self.param("A_log", named(nn.initializers.zeros, "heads"), (heads,)))

    def diagonal(self, x: Array) -> Array:
        """Returns what a token takes of itself, [batch, length, heads]; makes the parameters.

        x: [batch, length, heads, head_dim]
        """
        names = ("heads", "head_dim", None)
        init, kind = self.kernel_init, self.dtype
        delta = Linear(x.shape[2:3], names, False, init, kind, name="skip")(x)
        return delta + self.param("D", named(nn.initializers.ones, "heads"), x.shape[2:3])


class StateSpace(Scan):
    """Layers of one or two scans.

    Both directions share the input, its convolution, the decay rates and the gate; B, C and the
    step sizes dt are their own. Order is seen without positions. Padding has no influence on the
    tokens: it takes no step, and is zero before the convolution.

    Attributes: beside those of `Scan`
      state: N, channels of the state.
      groups: G, groups of heads with the same B and C.
    """

    state: int = 64
    groups: int = 1

    def heads(self, width: int) -> int:
        """Returns H; raises UserError where it is not whole or the groups do not divide it."""
        heads = super().heads(width)
        if heads % self.groups:
            raise UserError(
                f"{type(self).__name__}: {heads} heads do not divide into {self.groups} groups"
            )
        return heads

    def directions(self, u: Array, mask: Array | None, count: int) -> list[Direction]:
        """Returns dt, B and C of `count` directions, made from u [batch, length, width]."""
        # Of each direction B and C.
        shape, names = (count, 2, self.groups, self.state), (None, None, None, "state")
        pairs = nn.silu(self.projected(u, "BC", shape, names, mask))
        dt = self.linear(u, "dt", (count, self.heads(u.shape[-1])), (None, "heads"))
        dt = self.steps(dt, mask)
        return [Direction(dt[:, :, i], pairs[:, :, i, 0], pairs[:, :, i, 1]) for i in range(count)]


class Hydra(StateSpace):
    """Mixes the tokens of a sequence in both directions, in time linear in its length.

    Padding has no influence on the tokens, unlike in the official implementation, where it is what
    a token of zeros becomes after the convolution's bias. The state that a token reads is its
    neighbour's, so that with a convolution of less than 5 taps it does not see two tokens as a
    pair.

    Attributes: beside those of `StateSpace`
      learn_start: the states in which the scans begin are learned, [H, P, N], the same for both.
      form: see `ops.quasiseparable`.
      skip: a token's own part, data-dependent; without, the diagonal of the matrix is zero.

    Source: Hydra (arXiv 2407.09941), section 3 and appendix; parameters as officially initialised,
    A = -1, D = 1, dt from 0.001 to 0.1.
    """

    learn_start: bool = False
    form: str = "auto"
    skip: bool = True

    def mix(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns the quasiseparable matrix times x."""
        heads = x.shape[2]
        forward, backward = self.directions(u, mask, 2)
        return quasiseparable(
            x,
            self.rates(heads),
            forward,
            backward,
            self.diagonal(x) if self.skip else jnp.zeros(x.shape[:3]),
            form=self.form,
            chunk=self.chunk,
            initial_state=self._start(heads, len(u)),
        )

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
