"""One step of training as one pure function of (state, batch, key)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, TrainState
from bigr_jax.train import ema as averaging

Step = Callable[[TrainState, Batch, Array, Given], tuple[TrainState, Mapping[str, Array]]]
Gradient = Callable[[Any, Array, Batch], tuple[Any, Aux]]


def make_step(
    method: Method,
    tx: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    *,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Step:
    """Returns the train step (state, batch, root key, given) -> (state, metrics).

    The step's key is `fold_in(root, state.step)`, so that resuming needs no random state.
    accumulate  number of micro-batches whose gradients are averaged in one step; a method that
                replaces the step does this itself where it applies
    ema         decay of the averaged parameters, 0 for none
    """

    def apply(
        state: TrainState, grads: Any, mutable: Mapping[str, Any]
    ) -> tuple[TrainState, Mapping[str, Array]]:
        params = state.variables["params"]
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        averaged = state.ema
        if averaged is not None:
            averaged = averaging.update(averaged, params, ema, state.step)
        variables = {**state.variables, **mutable, "params": params}
        metrics = {"grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        return TrainState(state.step + 1, variables, opt_state, averaged), metrics

    def step(
        state: TrainState, batch: Batch, root: Array, given: Given
    ) -> tuple[TrainState, Mapping[str, Array]]:
        key = jax.random.fold_in(root, state.step)
        if method.step is not None:
            return method.step(state, key, batch, given, apply)

        def gradient(variables: Any, key: Array, batch: Batch) -> tuple[Any, Aux]:
            def loss(params: Any) -> tuple[Array, Aux]:
                return method.loss({**variables, "params": params}, key, batch, given)

            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            return grads, Aux({"loss": value, **aux.metrics}, aux.mutable)

        grads, aux = accumulated(gradient, state.variables, key, batch, accumulate)
        state, metrics = apply(state, grads, aux.mutable)
        return state, {**aux.metrics, **metrics}

    return step


def accumulated(
    gradient: Gradient, variables: Any, key: Array, batch: Batch, count: int
) -> tuple[Any, Aux]:
    """Returns the mean gradient and metrics over `count` micro-batches, scanned; one is in memory
    at a time.

    Row i goes to micro-batch i % count, so that every device keeps its own rows.
    """
    if count == 1:
        return gradient(variables, key, batch)
    parts = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1),
        dict(batch),
    )
    first = jax.tree.map(lambda x: x[0], parts)
    shapes, aux = jax.eval_shape(gradient, variables, key, first)
    # The mean of a count is no whole number.
    means = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf / count, x), dict(aux.metrics))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes, means))
    mutable = {name: variables[name] for name in aux.mutable}

    def body(carry: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
        sums, mutable = carry
        index, rows = part
        grads, aux = gradient({**variables, **mutable}, jax.random.fold_in(key, index), rows)
        sums = jax.tree.map(lambda s, x: s + x / count, sums, (grads, dict(aux.metrics)))
        return (sums, dict(aux.mutable)), None

    ((grads, metrics), mutable), _ = jax.lax.scan(
        body, (zeros, mutable), (jnp.arange(count), parts)
    )
    return grads, Aux(metrics, mutable)
