"""A number that is not finite, put into ten places of a step, is named where it was put."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax.api import Aux, Method, TrainState
from bigr_jax.train import diagnosis, taps
from bigr_jax.train.diagnosis import first_not_finite
from bigr_jax.train.step import make_step, step_before

DEPTH, WIDTH = 4, 6
# Where: at which layer, and what is said.
LAYERS = "at iteration {} of its scan"
SITES = {
    "input": (0, "x of the batch"),
    "embedding": (0, "what leaves embed (Poisoned)"),
    "attention": (2, f"what leaves layers/attention (Poisoned) {LAYERS}"),
    "mlp": (1, f"what leaves layers/mlp (Poisoned) {LAYERS}"),
    "between": (3, f"what enters layers/mlp (Poisoned) {LAYERS}"),
    "norm": (0, "what leaves norm (Poisoned)"),
    "head": (0, "what leaves head (Poisoned)"),
    "loss": (0, "the loss itself: what every layer returns is finite"),
    "gradient": (0, "the gradient of slope: the loss is finite"),
    "statistics": (0, "batch_stats/mean after the step: loss and gradient are finite"),
}
NAMES = list(SITES)


def poisoned(x: jax.Array, site: str, batch: Any, layer: Any = 0) -> jax.Array:
    hit = (batch["site"] == NAMES.index(site)) & (batch["layer"] == layer)
    return jnp.where(hit.any(), jnp.nan, x)


class Poisoned(nn.Module):
    site: str

    @nn.compact
    def __call__(self, x, batch, layer=0):
        return poisoned(nn.Dense(WIDTH, name="dense")(x), self.site, batch, layer)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, layer, batch):
        # Masked as attention masks: an infinity that is no fault.
        scores = jnp.where(jnp.arange(WIDTH) < 3, -jnp.inf, nn.LayerNorm(name="norm")(x))
        x = x + Poisoned("attention", name="attention")(nn.softmax(scores), batch, layer)
        x = poisoned(x, "between", batch, layer)
        return x + Poisoned("mlp", name="mlp")(x, batch, layer), None


class Net(nn.Module):
    remat: bool

    @nn.compact
    def __call__(self, batch):
        x = Poisoned("embedding", name="embed")(batch["x"], batch)
        layer = nn.remat(Layer) if self.remat else Layer
        split, axes = {"params": True}, (0, nn.broadcast)
        scan = nn.scan(layer, {"params": 0}, split_rngs=split, in_axes=axes, length=DEPTH)
        x, _ = scan(name="layers")(x, jnp.arange(DEPTH), batch)
        x = Poisoned("norm", name="norm")(x, batch)
        return Poisoned("head", name="head")(x, batch)


class Case:
    """A method, its step compiled, and a state, all for one way to differentiate."""

    def __init__(
        self, remat: bool = False, accumulate: int = 1, own: bool = False, branch: int | None = None
    ) -> None:
        net = Net(remat)

        def loss(variables, key, batch, given):
            if branch is None:
                return taken(variables, key, batch, given)
            # Of two branches that are told apart when it runs, with the same names in both.
            wide = {**batch, "x": jnp.concatenate([batch["x"], batch["x"]])}
            others = [functools.partial(taken, variables, key, own, given) for own in (batch, wide)]
            return jax.lax.switch(batch["site"][0] * 0 + branch, others)

        def taken(variables, key, batch, given):
            params = variables["params"]
            value = (net.apply({"params": params["net"]}, batch) ** 2).mean()
            value = poisoned(value, "loss", batch)
            steep = jnp.where(batch["site"][0] == NAMES.index("gradient"), 0.0, 1.0)
            value += jnp.sqrt(steep * params["slope"] ** 2)
            mean = poisoned(variables["batch_stats"]["mean"] + 1, "statistics", batch)
            return value, Aux({}, {"batch_stats": {"mean": mean}})

        def step(state, key, batch, given, apply):
            def cost(params):
                return loss({**state.variables, "params": params}, key, batch, given)

            (value, aux), grads = jax.value_and_grad(cost, has_aux=True)(state.variables["params"])
            state, metrics = apply(state, grads, aux.mutable)
            return state, {"loss": value, **metrics}

        method = Method(lambda *_: None, loss, lambda *_: {}, step=step if own else None)
        tx = optax.adamw(1e-3)
        plain = functools.partial(make_step, accumulate=accumulate, ema=0.9)
        self.step = plain(method, tx, lambda step: jnp.float32(1e-3))
        self.hurried = plain(method, tx, lambda step: jnp.float32(jnp.inf))
        params = {
            "net": nn.unbox(net.init(jax.random.key(0), self.batch("input", 9)))["params"],
            "slope": jnp.ones(()),
        }
        variables = {"params": params, "batch_stats": {"mean": jnp.zeros(())}}
        self.state = TrainState(jnp.int32(0), variables, tx.init(params), variables)
        self.run = jax.jit(self.step)

    @staticmethod
    def batch(site: str, layer: int) -> dict[str, jax.Array]:
        x = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
        x[1, 2] = np.nan if (site, layer) == ("input", 0) else x[1, 2]
        numbers = {"site": NAMES.index(site), "layer": layer}
        return {"x": jnp.asarray(x), **{k: jnp.full(4, v) for k, v in numbers.items()}}

    def told(self, site: str, layer: int) -> str:
        batch, root = self.batch(site, layer), jax.random.key(1)
        after, metrics = self.run(self.state, batch, root, {})
        assert not metrics["finite"]
        metrics = {name: float(value) for name, value in metrics.items()}
        return first_not_finite(self.step, step_before(after, 1), batch, root, {}, metrics)


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.mark.parametrize("site", SITES)
def test_ten_sites_are_named(case, site):
    layer, said = SITES[site]
    assert case.told(site, layer) == said.format(layer)


HOW = [{"remat": True}, {"accumulate": 2}, {"own": True}, {"branch": 0}, {"branch": 1, "own": True}]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_however_the_gradient_is_taken(how):
    other = Case(**how)
    at = "at iterations 0, 2 of its scans" if "accumulate" in how else LAYERS.format(2)
    assert other.told("attention", 2) == f"what leaves layers/attention (Poisoned) {at}"


def test_the_learning_rate(case):
    batch, root = case.batch("input", 9), jax.random.key(1)
    after, metrics = jax.jit(case.hurried)(case.state, batch, root, {})
    assert not metrics["finite"] and int(after.step) == -1
    metrics = {name: float(value) for name, value in metrics.items()}
    told = first_not_finite(case.hurried, step_before(after, 1), batch, root, {}, metrics)
    assert told == "the learning rate"


def test_what_is_given_is_looked_at_first(case):
    batch, root = case.batch("input", 9), jax.random.key(1)
    bad = {"params": {"w": jnp.full(3, -jnp.inf), "b": jnp.ones(())}}
    told = first_not_finite(case.step, case.state, batch, root, {"tokenizer": bad}, {})
    assert told == "tokenizer/params/w of the given stages"
    many = {"params": {name: jnp.full((), jnp.nan) for name in "abcde"}}
    state = case.state._replace(variables=many)
    told = first_not_finite(case.step, state, batch, root, {}, {})
    assert (
        told == "variables/params/a, variables/params/b, variables/params/c and 2 more of the state"
    )


def test_a_step_that_is_finite_the_second_time(case):
    told = first_not_finite(
        case.step, case.state, case.batch("input", 9), jax.random.key(1), {}, {}
    )
    assert told == "not seen again when the step was run a second time"


def test_what_cannot_be_looked_at_is_said(case, monkeypatch):
    def broken(function, *args, where=None):
        if function is case.step:
            raise KeyError("num_consts")
        return []

    monkeypatch.setattr(diagnosis, "not_finite", broken)
    told = first_not_finite(case.step, case.state, {}, jax.random.key(1), {}, {})
    assert told == "unknown, since looking for it failed: KeyError: 'num_consts'"


def test_a_name_leaves_nothing_in_the_program():
    def plain(x):
        return jnp.sin(x) * 2

    def named(x):
        return taps.tap({"a": jnp.sin(taps.tap(x, "input", "here")), "n": 3}, "output")["a"] * 2

    x = jnp.ones(3)
    texts = {jax.jit(f).lower(x).compile().as_text().count("fusion") for f in (plain, named)}
    assert len(texts) == 1
    assert taps.not_finite(named, jnp.array([1.0, jnp.inf])) == [
        taps.Found("input", "here", ()),
        taps.Found("output", "a", ()),
    ]
