"""The LARS probe against NumPy step by step, and on problems whose answer is known."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.metrics import probe_mae
from bigr_jax.metrics.probe_mae import Protocol, accuracies, create, fit, hits, train_step

LAYERS, SIZE, CLASSES, BATCH = 3, 5, 4, 8
SHORT = Protocol(batch=BATCH, epochs=2, warmup=1, rate=3.0, trust=0.01)
PER_EPOCH = 2


def drawn(seed, rows=BATCH, layers=LAYERS):
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.1, 5, (layers, 1, SIZE))
    features = scales * rng.standard_normal((layers, rows, SIZE)) + 3
    return features.astype(np.float32), rng.integers(0, CLASSES, rows)


def by_numpy(kernel, batches, protocol):
    """One layer in float64: PyTorch's BatchNorm1d(affine=False, eps=1e-6), cross-entropy, LARS."""
    kernel, bias = np.float64(kernel), np.zeros(CLASSES)
    sums = np.zeros_like(kernel), np.zeros_like(bias)
    mean, variance, losses = np.zeros(SIZE), np.ones(SIZE), []
    for step, (x, labels) in enumerate(batches):
        x, rows = np.float64(x), len(x)
        epoch = step / PER_EPOCH
        share = (epoch - protocol.warmup) / (protocol.epochs - protocol.warmup)
        rate = protocol.rate * protocol.batch / 256
        if epoch < protocol.warmup:
            rate *= epoch / protocol.warmup
        else:
            rate *= (1 + np.cos(np.pi * share)) / 2
        seen = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
        mean = 0.9 * mean + 0.1 * x.mean(0)
        variance = 0.9 * variance + 0.1 * x.var(0, ddof=1)
        logits = seen @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(rows), labels]).mean())
        p[np.arange(rows), labels] -= 1
        grad = seen.T @ p / rows
        grad *= protocol.trust * np.linalg.norm(kernel) / np.linalg.norm(grad)
        sums = protocol.momentum * sums[0] + grad, protocol.momentum * sums[1] + p.mean(0)
        kernel, bias = kernel - rate * sums[0], bias - rate * sums[1]
    return kernel, bias, mean, variance, losses


def trained(batches, layers=slice(None)):
    probe = create(jax.random.key(0), LAYERS, SIZE, CLASSES, SHORT)
    probe = jax.tree.map(lambda x: x[layers] if x.ndim else x, probe)
    begun, losses = jax.device_get(probe), []
    for features, labels in batches:
        probe, loss = train_step(probe, features[layers], labels, PER_EPOCH, SHORT)
        losses.append(np.asarray(loss))
    return begun, jax.device_get(probe), losses


@pytest.fixture(scope="module")
def batches():
    return [drawn(seed) for seed in range(4)]


def test_four_steps_are_those_of_numpy(batches):
    begun, probe, losses = trained(batches)
    assert probe.step == 4 and abs(begun.params["kernel"]).max() < 0.1
    for layer in range(LAYERS):
        rows = [(features[layer], labels) for features, labels in batches]
        kernel, bias, mean, variance, wanted = by_numpy(begun.params["kernel"][layer], rows, SHORT)
        np.testing.assert_allclose(probe.params["kernel"][layer], kernel, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(probe.params["bias"][layer], bias, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(probe.mean[layer], mean, rtol=1e-5)
        np.testing.assert_allclose(probe.variance[layer], variance, rtol=1e-5)
        np.testing.assert_allclose([loss[layer] for loss in losses], wanted, rtol=1e-5)
    # The first step has a rate of 0; the others move the weights.
    assert abs(probe.params["kernel"] - begun.params["kernel"]).max() > 1e-5


def test_layers_do_not_see_each_other(batches):
    _, together, losses = trained(batches)
    _, alone, own = trained(batches, slice(1, 2))
    np.testing.assert_allclose(alone.params["kernel"][0], together.params["kernel"][1], atol=1e-6)
    np.testing.assert_allclose(alone.variance[0], together.variance[1], rtol=1e-6)
    np.testing.assert_allclose([x[0] for x in own], [x[1] for x in losses], rtol=1e-6)


def test_the_rate_rises_and_falls():
    protocol = Protocol(batch=512)
    rates = np.array([probe_mae.learning_rate(step, 3, protocol) for step in range(271)])
    assert rates[0] == 0 and rates[-1] == pytest.approx(0, abs=1e-7)
    assert rates.argmax() == 30 and rates[30] == pytest.approx(0.2)
    assert (np.diff(rates[:31]) > 0).all() and (np.diff(rates[30:]) < 0).all()


def test_separable_classes_are_told_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % CLASSES
    centres = 4 * rng.standard_normal((CLASSES, SIZE))
    good = centres[labels] + 0.3 * rng.standard_normal((240, SIZE))
    # Of far larger numbers, which the normalisation must undo; and features that tell nothing.
    layers = np.stack([good, 1e3 * good + 500, rng.standard_normal((240, SIZE))])
    protocol = Protocol(batch=20, epochs=30, warmup=3, rate=200.0)
    probe = fit(lambda rows: (layers[:, rows], labels[rows]), 200, CLASSES, protocol)
    parts = [(layers[:, 200 + i : 208 + i], labels[200 + i : 208 + i]) for i in (0, 8, 16, 24, 32)]
    found = accuracies(probe, parts, 8)
    assert found.shape == (3, 2)
    assert (found[:2, 0] == 1).all() and found[2, 0] < 0.6 and (found[:, 1] == 1).all()


def test_an_epoch_sees_each_example_once_but_for_the_rest_of_a_batch():
    features, labels = drawn(0, 21)
    seen, shown = [], []

    def read(rows):
        seen.append(rows)
        return features[:, rows], labels[rows]

    fit(read, 21, CLASSES, SHORT, shown=lambda epochs: shown.append(epochs) or epochs)
    first, second = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    assert len(seen) == 4 and shown == [range(2)]
    assert len(set(first)) == len(set(second)) == 16 and list(first) != list(second)


def test_ranks_ties_and_masked_rows():
    probe = create(jax.random.key(0), 1, 2, 7, Protocol())
    kernel = np.zeros((1, 2, 7), np.float32)
    kernel[0, 0] = [0, 1, 2, 3, 4, 5, 6]
    probe = probe._replace(params={"kernel": kernel, "bias": np.zeros((1, 7), np.float32)})
    rows = np.array([[[1, 0], [1, 0], [1, 0], [0, 0], [0, 0], [1, 0]]], np.float32)
    labels = np.array([6, 2, 1, 0, 5, 6])
    found = np.asarray(hits(probe, rows, labels, np.array([1, 1, 1, 1, 1, 0.0])))
    # Likeliest: the first, and of equal logits class 0; among five: classes 2 to 6, or 0 to 4.
    np.testing.assert_array_equal(found, [[2, 3]])


def test_what_is_no_number_is_never_right():
    probe = create(jax.random.key(0), 1, 2, 3, Protocol())
    broken = jax.tree.map(lambda x: x * np.nan, probe.params)
    rows, labels = np.ones((1, 4, 2), np.float32), np.zeros(4, int)
    np.testing.assert_array_equal(hits(probe._replace(params=broken), rows, labels, np.ones(4)), 0)
    features, labels = drawn(0)
    with pytest.raises(UserError, match=r"loss of the probes is not finite at rate=1e\+38; give a"):
        fit(lambda rows: (features, labels), BATCH, CLASSES, SHORT._replace(epochs=8, rate=1e38))


def test_the_last_batch_may_be_shorter():
    probe = create(jax.random.key(0), LAYERS, SIZE, CLASSES, Protocol())
    features, labels = drawn(0, 11)
    whole = accuracies(probe, [(features, labels)], 11)
    parts = [(features[:, i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(accuracies(probe, parts, 4), whole, rtol=1e-12)


def test_mistakes_are_named():
    features, labels = drawn(0)
    with pytest.raises(ValueError, match=r"labels \(8,\) for features \(8, 5\)"):
        fit(lambda rows: (features[0], labels), BATCH, CLASSES, Protocol())
    for examples, settings, message in (
        (1, {}, "probe of 1 examples"),
        (BATCH, {"batch": 1}, "batch=1: legal: 2 and more"),
        (BATCH, {"epochs": 5}, "epochs=5, warmup=10"),
        (BATCH, {"rate": 0.0}, "a positive rate"),
    ):
        with pytest.raises(UserError, match=message):
            fit(lambda rows: (features, labels), examples, CLASSES, Protocol(**settings))
    with pytest.raises(UserError, match="0 rows"):
        accuracies(create(jax.random.key(0), 1, 2, 3, Protocol()), [], 4)
    assert probe_mae.check(Protocol(), 100).batch == 100
