"""An exponential moving average of a tree of arrays, for evaluation and sampling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update(
    ema: Any, params: Any, decay: float | jax.Array, step: jax.Array | int = 0, warmup: bool = False
) -> Any:
    """Returns rate * ema + (1 - rate) * params, leaf by leaf in float32.

    The rate is `decay`, or with `warmup` min(decay, (1 + step) / (10 + step)), so that the random
    initial values leave the average within the first steps; `step` counts the updates before this.
    """
    rate = jnp.asarray(decay, jnp.float32)
    if warmup:
        rate = jnp.minimum(rate, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda old, new: rate * old + (1.0 - rate) * new.astype(jnp.float32), ema, params
    )
