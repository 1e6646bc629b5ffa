"""One causal scan, and two of them joined without a shift: what Hydra is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bigr_jax.nn.hydra import StateSpace
from bigr_jax.ops.ssd import ssd

Array = jax.Array

JOINS = ("add", "mult", "concat")


class Causal(StateSpace):
    """One scan from the first token to the last, SS(x), after a convolution that looks back only.

    Source: Mamba-2 (arXiv 2405.21060) in the shell of Hydra (arXiv 2407.09941), Table 3, without
    the skip D x, as the directions of `Both` have it.
    """

    causal = True

    def mix(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns the semiseparable matrix times x."""
        (way,) = self.directions(u, mask, 1)
        return ssd(x, way.dt, self.rates(x.shape[2]), way.B, way.C, chunk=self.chunk).y


class Both(StateSpace):
    """A scan from each end, SS(x) and flip(SS'(flip(x))), joined.

    A token's own part is C_i B_i dt_i of both scans; there is no further skip unless `skip`.

    Attributes: beside those of `StateSpace`
      join: "add" or "mult" (entry by entry) the results, or "concat" their channels, so that the
        last product has twice as many inputs and the gate serves both halves.
      skip: adds the data-dependent diagonal of Hydra.

    Source: Hydra (arXiv 2407.09941), Tables 3 and 10.
    """

    join: str = "add"
    skip: bool = False

    def mix(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns what both scans make of x; raises ValueError for an unknown `join`."""
        if self.join not in JOINS:
            raise ValueError(f"join is {self.join!r}; legal: {', '.join(JOINS)}")
        A = self.rates(x.shape[2])
        one, two = (
            ssd(x, way.dt, A, way.B, way.C, chunk=self.chunk, reverse=reverse).y
            for way, reverse in zip(self.directions(u, mask, 2), (False, True), strict=True)
        )
        if self.join == "concat":
            return jnp.concatenate([one, two], axis=2)
        y = one + two if self.join == "add" else one * two
        return y + self.diagonal(x)[..., None].astype(x.dtype) * x if self.skip else y
