"""Many equal layers as one: compiled once, their parameters stacked along a leading axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.errors import one_of

Array = jax.Array

# What the backward pass finds stored of a layer: everything, its matrix products, its input.
REMAT: Mapping[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def scan_layers(
    layer: nn.Module,
    depth: int,
    x: Array,
    *inputs: Any,
    remat: str = "none",
    deterministic: bool = True,
    collect: bool = False,
    first: int | None = None,
    unroll: int = 1,
    drop_path: Any = None,
    states: Any = None,
) -> tuple[Array, Any]:
    """Applies `depth` layers of one form after another, under `jax.lax.scan`.

    layer    a module, called as layer(x, *inputs, deterministic=...) -> as x; it comes to hold the
             parameters of all layers, stacked along a leading axis with the name "layers"
    inputs   the same for every layer
    remat    "none", "dots" or "full": how much of a layer the backward pass computes again
    collect  also returns what every layer gave, [depth, *x.shape]; otherwise None
    first    applies only so many of the layers, whose parameters then exist already
    unroll   layers that a turn of the loop takes: more compile longer, and a few small ones may run
             faster on a CPU
    drop_path  [depth]: a layer gets its own entry as the argument `drop_path`, see `nn.drop_path`
    states   a tree of arrays [depth, ...]: a layer gets its own entries as the argument `state` and
             returns (x, state), with its new ones; these come back in place of what `collect` gives
    Raises UserError for an unknown `remat`.
    """
    if remat not in REMAT:
        raise one_of("remat", remat, REMAT)

    def body(layer: Any, x: Array, own: Any, *inputs: Any) -> tuple[Array, Any]:
        found = layer(x, *inputs, deterministic=deterministic, **own)
        return found if "state" in own else (found, found if collect else None)

    count = depth if first is None else first
    own = {} if drop_path is None else {"drop_path": jnp.asarray(drop_path)[:count]}
    own |= {} if states is None else {"state": states}

    policy = REMAT[remat]
    scanned = nn.scan(
        body if policy is None else nn.remat(body, policy=policy, prevent_cse=False),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast for _ in inputs)),
        length=count,
        unroll=unroll,
        check_constancy_invariants=False,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    if first is not None:
        cut = lambda params: jax.tree.map(lambda leaf: leaf[:first], params)  # noqa: E731
        scanned = nn.map_variables(scanned, "params", cut)
    return scanned(layer, x, own, *inputs)
