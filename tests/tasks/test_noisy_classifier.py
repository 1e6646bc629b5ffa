"""ELR and ELR+ as methods: a step by hand in NumPy, what changes and what does not, and the limits
in which it is plain cross-entropy.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.api import Rows
from bigr_jax.data.mixing import shares
from bigr_jax.errors import UserError
from bigr_jax.models.mlp_classifier import MLPClassifier
from bigr_jax.models.resnet import ResNet
from bigr_jax.tasks import noisy_classifier as noisy
from bigr_jax.tasks.classifier import classifier
from bigr_jax.tasks.noisy_classifier import EarlyLearning, noisy_classifier

CLASSES, EXAMPLES, SIZE = 4, 20, 6
NET = MLPClassifier(CLASSES, (5,))
KEY = jax.random.key(0)
PLAIN = EarlyLearning()
PLUS = EarlyLearning(networks=2, mixup=1.0, average=0.9, ramp=4)


def batch(seed=0, index=None):
    rng = np.random.default_rng(seed)
    index = rng.permutation(EXAMPLES)[:SIZE] if index is None else np.array(index)
    # What an example shows depends on it alone.
    table = np.random.default_rng(9)
    shown = table.integers(0, 256, (EXAMPLES, 3, 2, 1)).astype(np.uint8)
    label, clean = table.integers(0, CLASSES, (2, EXAMPLES)).astype(np.int32)
    return {
        "image": jnp.asarray(shown[index]),
        "label": jnp.asarray(label[index]),
        "clean": jnp.asarray(clean[index]),
        "index": jnp.asarray(index, jnp.int32),
        "mask": jnp.ones(len(index), jnp.float32),
    }


def made(settings=PLAIN, net=NET, seed=0):
    method = noisy_classifier(net, CLASSES, EXAMPLES, settings)
    variables = nn.meta.unbox(jax.jit(method.init)(KEY, batch(), {}))
    memory = variables["memory"]["targets"]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(CLASSES), memory.shape[:1])
    wide = np.tile(drawn * 0.9, (1, settings.networks)).astype("f4")
    return method, {**variables, "memory": {"targets": jnp.asarray(wide)}}


def slope(method, variables, rows):
    """Returns value, auxiliaries and gradient of a loss."""

    def loss(params, variables, rows):
        return method.loss({**variables, "params": params}, KEY, rows, {})

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, aux), grads = run(variables["params"], variables, rows)
    return value, aux, grads


def same(one, other, **limits):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **limits), one, other)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits_of(params, images, net=NET):
    return np.asarray(net.apply({"params": params}, images)[0], "f8")


def test_a_step_is_the_papers():
    settings = EarlyLearning(3.0, 0.7)
    method, variables = made(settings)
    rows = batch()
    value, aux, _ = slope(method, variables, rows)
    logits = logits_of(variables["params"], rows["image"] / 255.0)
    p = np.clip(softmax(logits), 1e-4, 1 - 1e-4)
    old = np.asarray(variables["memory"]["targets"], "f8")[rows["index"]]
    t = 0.7 * old + 0.3 * p / p.sum(1, keepdims=True)
    cost = -np.log(softmax(logits))[np.arange(SIZE), rows["label"]].mean()
    term = np.log(1 - (t * p).sum(1)).mean()
    np.testing.assert_allclose(value, cost + 3 * term, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["cross_entropy"], cost, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["regularizer"], term, rtol=1e-5)
    right = (logits.argmax(1) == rows["label"]).mean()
    np.testing.assert_allclose(aux.metrics["accuracy"], right, rtol=1e-6)
    found = aux.mutable["memory"]["targets"]
    assert isinstance(found, Rows)
    np.testing.assert_array_equal(found.places, rows["index"])
    np.testing.assert_allclose(found.values, t, atol=1e-6)


@pytest.mark.parametrize("settings", [EarlyLearning(strength=0.0), EarlyLearning(momentum=1.0)])
def test_without_weight_or_targets_it_is_cross_entropy(settings):
    method, variables = made(settings)
    if settings.momentum == 1:
        variables["memory"] = jax.tree.map(jnp.zeros_like, variables["memory"])
    value, aux, grads = slope(method, variables, batch())
    plain = classifier(NET)
    wanted, _, like = slope(plain, {"params": variables["params"]}, batch())
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    same(grads, like, atol=1e-7)
    if settings.momentum == 1:
        assert not aux.mutable["memory"]["targets"].values.any()
        assert aux.metrics["regularizer"] == 0


@pytest.mark.parametrize("settings", [EarlyLearning(), EarlyLearning(mixup=0.0, networks=2)])
def test_the_order_in_a_batch_changes_nothing(settings):
    method, variables = made(settings)
    rows, order = batch(), np.random.default_rng(1).permutation(SIZE)
    value, aux, grads = slope(method, variables, rows)
    moved = {name: column[order] for name, column in rows.items()}
    again, other, like = slope(method, variables, moved)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    same(grads, like, atol=1e-6)
    targets = [found.mutable["memory"]["targets"].values for found in (aux, other)]
    np.testing.assert_allclose(targets[1], targets[0][order], atol=1e-6)


def test_an_example_that_stands_twice_moves_once():
    method, variables = made()
    once = slope(method, variables, batch(index=[3, 5, 1, 2, 4, 0]))[1]
    twice = slope(method, variables, batch(index=[3, 5, 3, 5, 3, 0]))[1]
    values = [np.asarray(aux.mutable["memory"]["targets"].values) for aux in (once, twice)]
    np.testing.assert_allclose(values[1], values[0][[0, 1, 0, 1, 0, 5]], atol=1e-6)


def test_elr_plus_by_hand():
    method, variables = made(PLUS)
    variables["average"] = {
        "params": jax.tree.map(lambda leaf: leaf * 0.5, variables["params"]),
        "steps": jnp.int32(2),
    }
    rows = batch()
    value, aux, _ = slope(method, variables, rows)
    images = np.asarray(rows["image"], "f8") / 255
    decay = 0.9 * np.exp(-5 * (1 - 2 / 4) ** 2)
    averages = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new,
        variables["average"]["params"],
        variables["params"],
    )
    same(aux.mutable["average"]["params"], averages, rtol=1e-5, atol=1e-6)
    assert aux.mutable["average"]["steps"] == 3
    old = np.asarray(variables["memory"]["targets"], "f8")[rows["index"]]
    onehot, wanted, targets = np.eye(CLASSES)[np.asarray(rows["label"])], 0.0, []
    for own, other in ((0, 1), (1, 0)):
        believed = softmax(logits_of(averages[f"net_{other}"], jnp.asarray(images, "f4")))
        t = 0.7 * old[:, own * CLASSES : (own + 1) * CLASSES] + 0.3 * believed
        key = jax.random.fold_in(KEY, own) if own else KEY
        share = float(shares(jax.random.fold_in(key, noisy._MIXING), (3, 2), 1.0)[0, 0])
        share = max(share, 1 - share)
        mix = lambda x, share=share: share * x + (1 - share) * x[::-1]  # noqa: E731
        params = variables["params"][f"net_{own}"]
        logits = logits_of(params, jnp.asarray(mix(images), "f4"))
        p = np.clip(softmax(logits), 1e-4, 1 - 1e-4)
        cost = -(mix(onehot) * np.log(softmax(logits))).sum(1).mean()
        wanted += cost + 3 * np.log(1 - (mix(t) * p).sum(1)).mean()
        targets.append(t)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    found = aux.mutable["memory"]["targets"].values
    np.testing.assert_allclose(found, np.concatenate(targets, 1), atol=1e-6)


def test_either_network_has_the_gradient_of_its_own_loss_alone():
    method, variables = made(EarlyLearning(networks=2))
    _, aux, grads = slope(method, variables, batch())
    alone, _ = made(EarlyLearning())
    for own in (0, 1):
        params = variables["params"][f"net_{own}"]
        # The targets of this one network, after the update by the other's beliefs.
        columns = slice(own * CLASSES, (own + 1) * CLASSES)
        rows = batch()
        table = variables["memory"]["targets"][:, columns]
        table = table.at[rows["index"]].set(aux.mutable["memory"]["targets"].values[:, columns])
        keeps = noisy_classifier(NET, CLASSES, EXAMPLES, EarlyLearning(momentum=1.0))
        like = slope(keeps, {"params": params, "memory": {"targets": table}}, rows)[2]
        same(grads[f"net_{own}"], like, atol=1e-6)
    starts = alone.init(KEY, batch(), {})["params"]
    same(nn.meta.unbox(starts), variables["params"]["net_0"])
    kernels = [variables["params"][f"net_{own}"]["logits"]["kernel"] for own in (0, 1)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_batch_statistics_are_kept_of_the_networks_not_of_averages():
    net = ResNet(CLASSES, depths=(1,), widths=(2,))
    method, variables = made(PLUS, net)
    _, aux, _ = slope(method, variables, batch())
    stats = aux.mutable["batch_stats"]
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    share = noisy._Task(net, CLASSES, EXAMPLES, PLUS, "")._share(KEY, jnp.zeros((1, 3, 2, 1)))
    images = batch()["image"] / 255.0
    view = images * share[0, 0] + images[::-1] * (1 - share[0, 0])
    own = {name: variables[name]["net_0"] for name in ("params", "batch_stats")}
    _, kept = net.apply(own, view, False, mutable=["batch_stats"])
    same(stats["net_0"], kept["batch_stats"], atol=1e-6)
    found = jax.jit(method.evaluate)(variables, KEY, batch(), {})
    assert np.isfinite(found["loss"].value)


def test_what_is_measured_by_hand():
    method, variables = made(EarlyLearning(networks=2))
    rows = batch(index=range(12))
    rows["mask"] = rows["mask"].at[7].set(0)
    found = jax.jit(method.evaluate)(variables, KEY, rows, {})
    logits = sum(logits_of(variables["params"][f"net_{i}"], rows["image"] / 255.0) for i in (0, 1))
    told, there = logits.argmax(1), np.arange(12) != 7
    label, clean = np.asarray(rows["label"]), np.asarray(rows["clean"])
    wrong = there & (label != clean)
    cost = -np.log(softmax(logits / 2))[np.arange(12), label]
    memory = np.asarray(variables["memory"]["targets"])[:12].reshape(12, 2, -1).sum(1)
    wanted = {
        "accuracy": ((told == label)[there].sum(), 11),
        "loss": (cost[there].sum(), 11),
        "wrong": (wrong.sum(), 11),
        "memorised": ((told == label)[wrong].sum(), wrong.sum()),
        "corrected": ((told == clean)[wrong].sum(), wrong.sum()),
        "targets": ((memory.argmax(1) == clean)[there].sum(), 11),
    }
    assert found.keys() == wanted.keys() and 0 < wrong.sum() < 11
    for name, pair in wanted.items():
        np.testing.assert_allclose(found[name], pair, rtol=1e-5, err_msg=name)
    del rows["clean"]
    assert method.evaluate(variables, KEY, rows, {}).keys() == {"accuracy", "loss"}


@pytest.mark.parametrize(
    "changes", [{"strength": -1.0}, {"momentum": 1.5}, {"networks": 3}, {"mixup": -0.1},
                {"average": 1.0}, {"ramp": -1}]
)  # fmt: skip
def test_settings_that_are_not_legal_are_named(changes):
    (name,) = changes
    with pytest.raises(UserError, match=f"method.{name}="):
        noisy_classifier(NET, CLASSES, EXAMPLES, EarlyLearning(**changes))


def test_the_ramp_rises_to_one():
    values = [float(noisy.sigmoid_ramp(step, 4)) for step in (0, 2, 4, 9)]
    np.testing.assert_allclose(values, [np.exp(-5), np.exp(-5 / 4), 1, 1], rtol=1e-6)
    assert noisy.sigmoid_ramp(3, 0) == 1
