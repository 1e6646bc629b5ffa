"""Self-tuning as a method: which loss moves what, whose draws are whose, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax.api import TrainState
from bigr_jax.errors import UserError
from bigr_jax.models.response_nets import ResponseAlexNet, ResponseMLP
from bigr_jax.tasks import self_tuning as tuning
from bigr_jax.tasks.self_tuning import SelfTuning, self_tuning
from bigr_jax.train.defaults import stage
from bigr_jax.train.step import make_step

HYPERS = (("input", 0.0, 0.9, 0.3), ("hidden", 0.0, 0.9, 0.2), ("length", 0.0, 3.0, 1.5, True),
          ("holes", 0.0, 4.0, 2.5, True))  # fmt: skip
CLASSES, SIZE = 4, 8
KEY = jax.random.key(0)
SETTINGS = SelfTuning(HYPERS, lr=0.1)


def batch(held=True, seed=0):
    rng = np.random.default_rng(seed)

    def rows(count):
        return {
            "image": jnp.asarray(rng.integers(0, 256, (count, 4, 4, 1)), jnp.uint8),
            "label": jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32),
            "mask": jnp.ones(count),
        }

    beside = {f"held_{name}": x for name, x in rows(SIZE // 2).items()} if held else {}
    return {**rows(SIZE), **beside}


def made(settings=SETTINGS, warmup=0):
    net = ResponseMLP(CLASSES, (6, 5), len(settings.hypers) if settings.tune else 0)
    method = self_tuning(net, settings, warmup)
    variables = nn.unbox(jax.jit(method.init)(KEY, batch(settings.tune), {}))
    section = stage("10 steps", SIZE, optimizer="sgd", lr=0.1, clip=0.0, schedule="constant",
                    warmup="0%").optimizer  # fmt: skip
    tx, schedule = method.optimizer(section, 10, variables["params"], lambda t, k: 0, "key")
    state = TrainState(jnp.int32(0), variables, tx.init(variables["params"]), None)
    return method, state, jax.jit(make_step(method, tx, schedule))


def parts(settings=SETTINGS):
    net = ResponseMLP(CLASSES, (6, 5), len(HYPERS))
    hypers = tuning.HyperSet.of(HYPERS, "method.hypers")
    task = tuning._Task(net, hypers, settings, 0, "")
    return task, nn.unbox(jax.jit(task.init)(KEY, batch(), {}))["params"]


def own(rows):
    return {name: x for name, x in rows.items() if not name.startswith("held_")}


def without_gates(params):
    still = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key == "gates" else leaf, params["weights"]
    )
    return {**params, "weights": still}


@pytest.fixture(scope="module")
def stepped():
    _, state, step = made(warmup=1)
    first, _ = step(state, batch(), KEY, {})
    second, metrics = step(first, batch(seed=1), KEY, {})
    return state, first, second, metrics


def test_the_training_loss_never_reaches_the_hyperparameters():
    task, params = parts()
    rows = own(batch())
    slope = jax.jit(jax.grad(lambda p: task._train_loss(p, KEY, rows, jnp.int32(0))[0]))
    grads = slope(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["hyper"]))
    gates = [grads["weights"][name]["gates"] for name in ("hidden_0", "hidden_1", "logits")]
    assert all(gate.any() for gate in gates)


def test_the_held_out_loss_reaches_them_through_the_gates_alone():
    task, params = parts(SETTINGS._replace(entropy=0.0))

    rows = own(batch())
    slope = jax.jit(jax.grad(lambda p: task._valid_loss(p, KEY, rows)[0]))
    # Discrete ones too: the weights' answer is smooth.
    assert np.all(np.asarray(slope(params)["hyper"]["center"]) != 0)
    for leaf in jax.tree.leaves(slope(without_gates(params))["hyper"]):
        np.testing.assert_array_equal(leaf, 0)


def test_entropy_alone_widens_every_spread():
    task, params = parts(SETTINGS._replace(entropy=1.0))
    slope = jax.jit(jax.grad(lambda p: task._valid_loss(p, KEY, own(batch()))[0]))
    grads = slope(without_gates(params))["hyper"]
    assert np.all(grads["spread"] < 0) and not grads["center"].any()


def test_the_held_out_loss_has_no_dropout_and_no_augmentation():
    task, params = parts()
    narrow = {**params, "hyper": {**params["hyper"], "spread": jnp.full(4, -40.0)}}
    rows = own(batch())
    cost = jax.jit(lambda key: task._valid_loss(narrow, key, rows)[1])
    costs = [cost(jax.random.key(seed)) for seed in (0, 1)]
    np.testing.assert_allclose(*costs, rtol=1e-6)
    found = task.evaluate({"params": narrow}, KEY, rows, {})["loss"]
    np.testing.assert_allclose(costs[0], found.value / found.weight, rtol=1e-6)


def test_the_groups_take_their_turns(stepped):
    begin, first, second, metrics = stepped
    assert int(first.step) == 1 and int(second.step) == 2
    before, warm, after = (state.variables["params"] for state in (begin, first, second))
    same = jax.tree.map(np.array_equal, before["hyper"], warm["hyper"])
    assert all(jax.tree.leaves(same)), "within the warm-up the hyper-parameters stay"
    # Adam's first step is its rate, whatever the gradient.
    moved = np.abs(after["hyper"]["center"] - warm["hyper"]["center"])
    np.testing.assert_allclose(moved, 0.1, rtol=1e-3)
    counts = [leaf for leaf in jax.tree.leaves(second.opt_state["hyper"]) if leaf.ndim == 0]
    assert [int(count) for count in counts] == [1]
    assert {"held_loss", "input", "spread_input", "lr", "holes"} <= metrics.keys()
    assert metrics["holes"] == np.floor(metrics["holes"])


def test_weights_take_the_steps_of_plain_momentum():
    settings = SelfTuning(HYPERS[:2], tune=False)
    _, state, step = made(settings)
    found, metrics = step(state, batch(False), KEY, {})
    task = tuning._Task(ResponseMLP(CLASSES, (6, 5)), tuning.HyperSet.of(HYPERS[:2], ""), settings,
                        0, "")  # fmt: skip
    weights = state.variables["params"]["weights"]
    tx = optax.sgd(0.1, momentum=0.9)
    moments, key, losses = tx.init(weights), jax.random.fold_in(KEY, 0), []
    for index in range(2):
        rows = {name: x[index::2] for name, x in batch(False).items()}
        place = jax.random.fold_in(key, index)

        def cost(w, rows=rows, place=place):
            return task._train_loss({"weights": w}, place, rows, jnp.int32(0))[0]

        value, grads = jax.jit(jax.value_and_grad(cost))(weights)
        updates, moments = tx.update(grads, moments)
        weights = optax.apply_updates(weights, updates)
        losses.append(value)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        found.variables["params"]["weights"], weights,
    )  # fmt: skip
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert found.variables["params"].keys() == {"weights"}
    np.testing.assert_allclose(metrics["input"], 0.3, rtol=1e-6)


def test_a_schedule_is_interpolated():
    settings = SelfTuning(HYPERS[:2], tune=False, schedule=((2, 0.1, 0.0), (6, 0.5, 0.8)))
    task = tuning._Task(None, tuning.HyperSet.of(HYPERS[:2], ""), settings, 0, "")
    found = [task._scheduled(jnp.int32(step))["hidden"] for step in (0, 2, 3, 6, 9)]
    np.testing.assert_allclose(found, [0, 0, 0.2, 0.8, 0.8], atol=1e-6)


def test_convolutions_answer_too_and_gradients_reach_all_gates():
    net = ResponseAlexNet(3, (4, 4, 4, 4, 4), 6, tuned=2)
    images, h = jnp.ones((2, 32, 32, 3)) * 0.3, jnp.array([[0.1, 0.2], [1.0, -1.0]])
    rates = {"input": jnp.array([0.0, 0.0]), "conv0": jnp.array([0.0, 0.5])}
    params = nn.unbox(jax.jit(net.init)(KEY, images, h))["params"]

    def cost(params):
        logits = net.apply({"params": params}, images, h, rates, rngs={"dropout": KEY})
        return (logits**2).sum(), logits

    grads, logits = jax.jit(jax.grad(cost, has_aux=True))(params)
    assert logits.shape == (2, 3) and not np.allclose(logits[0], logits[1])
    assert all(layer["gates"].any() for layer in grads.values()) and len(grads) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_steps": 0}, "method.train_steps=0 must be 1 or more"),
        ({"spread": 0.0}, "method.spread=0.0 must be above 0"),
        ({"entropy": -1.0}, "method.entropy=-1.0 must be 0 or more"),
        ({"schedule": ((0, 0.1, 0.1, 1, 1),)}, r"must be \(\) where method.tune is True"),
        ({"tune": False, "schedule": ((0, 0.1),)}, r"rows must be \(step, input, hidden, length"),
    ],
)
def test_bad_settings_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        self_tuning(ResponseMLP(3), SETTINGS._replace(**changes))


def test_tuning_needs_something_held_out_and_rows_for_every_step():
    with pytest.raises(UserError, match="holds nothing out"):
        made()[0].init(KEY, batch(held=False), {})
    with pytest.raises(UserError, match="8 rows of a batch cannot be shared by 3 steps"):
        tuning._micro(own(batch()), 3)
