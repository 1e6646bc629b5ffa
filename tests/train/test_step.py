"""The train step on a least-squares method whose gradient is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax.api import Aux, Method, TrainState
from bigr_jax.train.state import averaged, eval_variables
from bigr_jax.train.step import make_step, step_before


def loss(variables, key, batch, given):
    error = batch["x"] @ variables["params"]["w"] - batch["y"]
    mutable = {"seen": {"count": variables["seen"]["count"] + 1}}
    return jnp.mean(error**2), Aux({"bias": error.mean()}, mutable)


METHOD = Method(init=None, loss=loss, evaluate=None)
LR = 0.1


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(12, 3)).astype("f4"), "y": rng.normal(size=12).astype("f4")}


def fresh(ema=False):
    params = {"w": jnp.arange(3.0)}
    variables = {"params": params, "seen": {"count": jnp.zeros((), jnp.int32)}}
    state = optax.sgd(LR).init(params)
    kept = {"params": params} if ema else None
    return TrainState(jnp.zeros((), jnp.int32), variables, state, kept)


def expected(w, batch):
    x, y = batch["x"].astype("f8"), batch["y"].astype("f8")
    return w - LR * 2 * x.T @ (x @ w - y) / len(y)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 12])
def test_step_is_gradient_descent_however_the_batch_is_cut(batch, accumulate):
    step = jax.jit(make_step(METHOD, optax.sgd(LR), lambda s: LR, accumulate=accumulate))
    state, metrics = step(fresh(), batch, jax.random.key(0), {})
    error = batch["x"] @ np.arange(3.0) - batch["y"]
    np.testing.assert_allclose(
        state.variables["params"]["w"], expected(np.arange(3.0), batch), atol=1e-5
    )
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["bias"], error.mean(), rtol=1e-4, atol=1e-6)
    assert int(state.step) == 1 and int(state.variables["seen"]["count"]) == accumulate


def test_average_follows_the_parameters(batch):
    step = jax.jit(make_step(METHOD, optax.sgd(LR), lambda s: LR, ema=0.5))
    state, _ = step(fresh(ema=True), batch, jax.random.key(0), {})
    new, old, kept = state.variables["params"]["w"], jnp.arange(3.0), state.ema["params"]["w"]
    share = (kept - old) / (new - old)
    assert np.all(share > 0.4) and np.ptp(share) < 1e-4


def test_the_average_follows_running_statistics_too():
    def loss(variables, key, batch, given):
        moved = {"batch_stats": {"norm": {"mean": variables["batch_stats"]["norm"]["mean"] + 8}}}
        return jnp.square(variables["params"]["w"]).sum(), Aux({}, moved)

    variables = {
        "params": {"w": jnp.arange(3.0)},
        "batch_stats": {"norm": {"mean": jnp.ones(2)}},
        "seen": {"count": jnp.zeros((), jnp.int32)},
    }
    state = fresh()._replace(variables=variables, ema=averaged(variables))
    assert state.ema.keys() == {"params", "batch_stats"}
    step = jax.jit(make_step(Method(None, loss, None), optax.sgd(LR), lambda s: LR, ema=0.75))
    after, _ = step(state, {}, jax.random.key(0), {})
    np.testing.assert_allclose(after.ema["batch_stats"]["norm"]["mean"], 3)
    np.testing.assert_allclose(after.variables["batch_stats"]["norm"]["mean"], 9)
    np.testing.assert_allclose(eval_variables(after)["batch_stats"]["norm"]["mean"], 3)


def test_keys_differ_by_step_and_not_by_state():
    seen = []

    def noisy(variables, key, batch, given):
        seen.append(jax.random.uniform(key))
        return variables["params"]["w"].sum(), Aux({"draw": seen[-1]})

    step = jax.jit(make_step(Method(None, noisy, None), optax.sgd(LR), lambda s: LR))
    state, first = step(fresh(), {}, jax.random.key(1), {})
    _, second = step(state, {}, jax.random.key(1), {})
    _, again = step(fresh(), {}, jax.random.key(1), {})
    assert first["draw"] != second["draw"] and first["draw"] == again["draw"]


def test_a_method_may_replace_the_step(batch):
    def own(state, key, batch, given, apply):
        state, _ = apply(state, {"w": jnp.ones(3)}, {})
        return apply(state, {"w": jnp.ones(3)}, {})

    step = jax.jit(make_step(METHOD._replace(step=own), optax.sgd(LR), lambda s: LR))
    state, metrics = step(fresh(), batch, jax.random.key(0), {})
    np.testing.assert_allclose(state.variables["params"]["w"], np.arange(3.0) - 2 * LR, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(3), rtol=1e-6)
    assert int(state.step) == 2


def stumbling(variables, key, batch, given):
    value, aux = loss(variables, key, batch, given)
    seen = {"count": variables["seen"]["count"] + batch["drift"]}
    steep = jnp.sqrt(batch["steep"] * variables["params"]["w"][0] ** 2)
    return value + steep + batch["lost"], Aux(aux.metrics, {"seen": seen})


def own(state, key, batch, given, apply):
    def cost(params):
        return stumbling({**state.variables, "params": params}, key, batch, given)

    (value, aux), grads = jax.value_and_grad(cost, has_aux=True)(state.variables["params"])
    state, _ = apply(state, grads, aux.mutable)
    state, metrics = apply(
        state._replace(step=state.step - 1), jax.tree.map(jnp.ones_like, grads), {}
    )
    return state, {**metrics, "loss": value}


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_what_is_not_finite_leaves_every_bit_of_the_state(batch, replaced, skip):
    method = METHOD._replace(loss=stumbling, step=own if replaced else None)
    tx = optax.adam(LR)
    step = jax.jit(make_step(method, tx, lambda s: LR, ema=0.5, skip=skip))
    params = {"w": jnp.arange(1.0, 4.0)}
    variables = {"params": params, "seen": {"count": jnp.zeros(())}}
    state = TrainState(jnp.zeros((), jnp.int32), variables, tx.init(params), {"params": params})
    good = {**batch, "drift": jnp.ones(()), "steep": jnp.ones(()), "lost": jnp.zeros(())}
    root = jax.random.key(0)
    state, metrics = step(state, good, root, {})
    assert metrics["finite"] and int(state.step) == 1
    ways = {"lost": jnp.nan, "steep": 0.0, "drift": -jnp.inf}
    for name, value in ways.items():
        kept, metrics = step(state, {**good, name: jnp.asarray(value)}, root, {})
        assert not metrics["finite"]
        assert int(kept.step) == (2 if skip else -2)
        assert same(kept, state)
        # Whoever reads the metrics late has asked for the next step meanwhile.
        later, metrics = step(kept, good, root, {})
        assert bool(metrics["finite"]) == skip
        assert int(later.step) == (3 if skip else -2) and same(later, kept) != skip
        again, metrics = step(step_before(later, 2), good, root, {})
        assert metrics["finite"] and int(again.step) == 2
        if not skip:
            assert same(again, step(state, good, root, {})[0])


def same(one, two):
    one, two = (jax.tree.leaves(state._replace(step=0)) for state in (one, two))
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, two, strict=True)
    )
