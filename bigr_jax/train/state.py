"""The train state: born sharded, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bigr_jax.api import Array, Given, Method, TrainState
from bigr_jax.data import Source
from bigr_jax.data.described import spec
from bigr_jax.data.division import PREFIX, held_of
from bigr_jax.train import optimizers, sharding


def batch_spec(source: Source, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a training batch of `size` rows, see `data.described.spec`; where some
    examples are held out, with those of their rows.
    """
    shapes = dict(spec(source))
    shapes |= {"index": ((), np.dtype(np.int32)), "mask": ((), np.dtype(np.float32))}
    found = {
        name: jax.ShapeDtypeStruct((size, *rest), kind) for name, (rest, kind) in shapes.items()
    }
    if held := held_of(source):
        rows = batch_spec(held.source, held.rows(size))
        found |= {PREFIX + name: leaf for name, leaf in rows.items()}
    return found


def zeros_like_spec(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Returns the batch of zeros that initialisation sees: parameters never depend on data."""
    return {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in batch.items()}


def abstract_variables(method: Method, batch: Mapping[str, Any], given: Given) -> Any:
    """Returns the shapes of `method.init`'s variables with linen's boxes kept."""
    return jax.eval_shape(
        lambda key, rest: method.init(key, zeros_like_spec(batch), rest), jax.random.key(0), given
    )


def abstract_state(
    boxed: Any,
    tx: optax.GradientTransformation,
    ema: float,
    mesh: Mesh,
    overrides: tuple[Any, ...] = (),
) -> TrainState:
    """Returns the TrainState of ShapeDtypeStructs with the placement of every leaf."""
    placed = sharding.place(boxed, mesh, overrides)
    variables = nn.meta.unbox(boxed)
    opt_state = jax.eval_shape(tx.init, variables["params"])
    shardings = TrainState(
        step=sharding.replicated(mesh),
        variables=placed,
        opt_state=sharding.place_like(opt_state, variables["params"], placed["params"], mesh),
        ema=averaged(placed) if ema else None,
    )
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        variables=variables,
        opt_state=opt_state,
        ema=averaged(variables) if ema else None,
    )
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def create(
    method: Method,
    tx: optax.GradientTransformation,
    abstract: TrainState,
    key: Array,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    given: Given,
) -> TrainState:
    """Returns the initial TrainState, every leaf made where it will live."""

    def init(key: Array, given: Given) -> TrainState:
        variables = nn.meta.unbox(method.init(key, zeros_like_spec(batch), given))
        params = variables["params"]
        # A copy: the state is donated, and one buffer cannot be donated twice.
        ema = None if abstract.ema is None else jax.tree.map(jnp.copy, averaged(variables))
        return TrainState(jnp.zeros((), jnp.int32), variables, tx.init(params), ema)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # LLVM spends most of its time on the random draws, one per parameter shape; this program runs
    # once, and the lower level gives the same bits. At the lowest, bits differ between meshes.
    quick = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=quick)(key, given)


def averaged(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the collections of which an average is kept: parameters, and with them the running
    statistics of norms, which those of the moment would not fit.
    """
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def eval_variables(state: TrainState, optimizer: str = "") -> dict[str, Any]:
    """Returns the variables to measure and to draw with: the averaged ones where there are some.

    optimizer  name of the optimizer: schedule-free ones evaluate at their own average
    """
    variables = dict(state.variables)
    if state.ema is not None:
        variables |= state.ema
    else:
        variables["params"] = optimizers.eval_params(
            optimizer, state.opt_state, variables["params"]
        )
    return variables
