"""One step of training as one pure function of (state, batch, key)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Rows, TrainState
from bigr_jax.train import ema as averaging
from bigr_jax.train import taps
from bigr_jax.train.state import averaged

Step = Callable[[TrainState, Batch, Array, Given], tuple[TrainState, Mapping[str, Array]]]
Gradient = Callable[[Any, Array, Batch], tuple[Any, Aux]]

# Metrics that must be finite, where a step has them.
CHECKED = ("loss", "grad_norm", "lr")


def make_step(
    method: Method,
    tx: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    *,
    accumulate: int = 1,
    ema: float = 0.0,
    skip: bool = False,
) -> Step:
    """Returns the train step (state, batch, root key, given) -> (state, metrics).

    The step's key is `fold_in(root, state.step)`, so that resuming needs no random state.
    accumulate  number of micro-batches whose gradients are averaged in one step; a method that
                replaces the step does this itself where it applies
    ema         decay of the averaged parameters, 0 for none

    Where one of `CHECKED` or a collection beside the parameters is not finite, the state that was
    given is returned bit by bit, and the metric "finite" is false. With `skip` only the count of
    steps goes on. Otherwise the count becomes negative, and a state with a negative count stays as
    it is, whatever step follows; `step_before` is the way back. Thus whoever reads the metrics one
    step late still finds the state that the bad step met.
    """

    def update(
        state: TrainState, grads: Any, mutable: Mapping[str, Any], finite: Array | None = None
    ) -> tuple[TrainState, Mapping[str, Array]]:
        grads, mutable = taps.tap(grads, "gradient"), taps.tap(mutable, "variables")
        metrics = {"grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        new = functools.partial(_updated, tx, ema)
        if finite is None:
            return new(state, grads, mutable), metrics
        finite &= all_finite((metrics, mutable)) & (state.step >= 0)
        shapes = jax.eval_shape(new, state, grads, mutable)

        def kept(old: TrainState, *_: Any) -> TrainState:
            # Of its own types, unless the method changes them, which is for others to refuse.
            return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), old, shapes)

        # Not a selection leaf by leaf, which would read and write the whole state once more.
        after = jax.lax.cond(finite, new, kept, state, grads, mutable)
        return _counted(after, state, finite, skip), {**metrics, "finite": finite}

    def step(
        state: TrainState, batch: Batch, root: Array, given: Given
    ) -> tuple[TrainState, Mapping[str, Array]]:
        key = jax.random.fold_in(root, state.step)
        if method.step is not None:
            after, metrics = method.step(state, key, batch, given, update)
            return _kept_unless_finite(after, state, metrics, skip)

        def gradient(variables: Any, key: Array, batch: Batch) -> tuple[Any, Aux]:
            def loss(params: Any) -> tuple[Array, Aux]:
                return method.loss({**variables, "params": params}, key, batch, given)

            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            return grads, Aux({"loss": value, **aux.metrics}, aux.mutable)

        grads, aux = accumulated(gradient, state.variables, key, batch, accumulate)
        state, metrics = update(state, grads, aux.mutable, jnp.isfinite(aux.metrics["loss"]))
        return state, {**aux.metrics, **metrics}

    return step


def step_before(state: TrainState, step: int) -> TrainState:
    """Returns a state as step number `step` met it, of one that was kept because of that step."""
    return state._replace(step=jax.device_put(jnp.int32(step - 1), state.step.sharding))


def all_finite(tree: Any) -> Array:
    """Returns whether all floats of a tree are finite, a bool."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    flags = (jnp.isfinite(leaf).all() for leaf in floats)
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))


def _updated(
    tx: optax.GradientTransformation,
    ema: float,
    state: TrainState,
    grads: Any,
    mutable: Mapping[str, Any],
) -> TrainState:
    params = state.variables["params"]
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    variables, kept = {**replaced(state.variables, mutable), "params": params}, state.ema
    if kept is not None:
        kept = averaging.update(kept, averaged(variables), ema, state.step)
    return TrainState(state.step + 1, variables, opt_state, kept)


def replaced(variables: Mapping[str, Any], mutable: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables with what `Aux.mutable` puts in their place: collections, and `Rows` of
    arrays.
    """

    def put(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Rows):
            return leaf
        whole: Any = variables
        for key in path:
            whole = whole[key.key]
        return whole.at[leaf.places].set(leaf.values)

    new = jax.tree_util.tree_map_with_path(put, mutable, is_leaf=lambda x: isinstance(x, Rows))
    return {**variables, **new}


def _kept_unless_finite(
    after: TrainState, state: TrainState, metrics: Mapping[str, Array], skip: bool
) -> tuple[TrainState, Mapping[str, Array]]:
    """A method that replaces the step may have updated several times, and in any order."""
    variables = taps.tap(after.variables, "variables")
    checked = [metrics[name] for name in CHECKED if name in metrics]
    finite = all_finite((checked, variables)) & (state.step >= 0)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
    return _counted(kept, state, finite, skip, after.step), {**metrics, "finite": finite}


def _counted(
    kept: TrainState, state: TrainState, finite: Array, skip: bool, after: Array | None = None
) -> TrainState:
    if skip:
        return kept._replace(step=state.step + 1 if after is None else after)
    # -1, -2, ... for 0, 1, ...
    stopped = jnp.minimum(state.step, ~state.step)
    return kept._replace(step=jnp.where(finite, kept.step, stopped))


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
        before = {**variables, **mutable}
        grads, aux = gradient(before, jax.random.fold_in(key, index), rows)
        sums = jax.tree.map(lambda s, x: s + x / count, sums, (grads, dict(aux.metrics)))
        after = replaced(before, aux.mutable)
        return (sums, {name: after[name] for name in mutable}), None

    ((grads, metrics), mutable), _ = jax.lax.scan(
        body, (zeros, mutable), (jnp.arange(count), parts)
    )
    return grads, Aux(metrics, mutable)
