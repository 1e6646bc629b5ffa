"""Stochastic depth: whole branches of a residual network are left out for some of the examples."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import UserError

Array = jax.Array


def rates(rate: float, depth: int, first: int = 0, total: int | None = None) -> np.ndarray:
    """Returns the rates of `depth` layers, float32 [depth]: linear from 0 in the first of a network
    to `rate` in its last.

    first, total  where a network has several parts: place of this one's first layer, and layers of
                  all of them; None: these are all
    Raises UserError for a rate that is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise UserError(f"drop_path={rate} must be at least 0 and less than 1")
    every = np.linspace(0.0, rate, depth if total is None else total, dtype=np.float32)
    return every[first : first + depth]


class DropPath(nn.Module):
    """Sets a branch to zero for some examples, and divides that of the others by their share.

    x: [batch, ...] -> as x; rate: in [0, 1), a number or an array without axes. Draws from the rng
    "dropout" unless `deterministic`. Source: Huang et al. (arXiv 1603.09382), equation 5.
    """

    @nn.compact
    def __call__(self, x: Array, rate: float | Array, deterministic: bool = True) -> Array:
        if deterministic or (isinstance(rate, float) and not rate):
            return x
        kept = jax.random.bernoulli(
            self.make_rng("dropout"), 1.0 - rate, (len(x), *(1,) * (x.ndim - 1))
        )
        return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), 0)
