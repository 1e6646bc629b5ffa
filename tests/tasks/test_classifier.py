"""Classification as a method: masked evaluation, and learning on a task with a known answer; the
same bits as ever where nothing is asked; mixed batches, dropout and batch statistics.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax import config as configs
from bigr_jax.data.augment import augment, parse, to_float
from bigr_jax.data.mixing import shares
from bigr_jax.models.convnet import ConvNet
from bigr_jax.registry import run_file
from bigr_jax.tasks import classifier as classifiers
from bigr_jax.tasks.classifier import classifier

NET = ConvNet(2, widths=(8,))
KEY = jax.random.key(0)
ROOT = Path(__file__).resolve().parents[2]


class Normed(nn.Module):
    """Two features of an image, its mean and that of its square: normed, dropped, weighed."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, images, deterministic=True):
        means = [images.mean((1, 2, 3)), (images**2).mean((1, 2, 3))]
        x = jnp.stack(means, -1)
        x = nn.BatchNorm(use_running_average=deterministic, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dropout(self.rate)(x, deterministic=deterministic), x


def batch(seed, size=16):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, size)
    image = np.where(label[:, None, None, None] == 1, 200, 30) + rng.integers(
        0, 20, (size, 4, 4, 1)
    )
    return {
        "image": jnp.asarray(image, jnp.uint8),
        "label": jnp.asarray(label, jnp.int32),
        "mask": jnp.ones(size),
    }


def test_learns_dark_from_bright_and_evaluates_by_hand():
    method = classifier(NET, smoothing=0.1)
    tx = optax.adam(1e-2)
    variables = nn.meta.unbox(method.init(jax.random.key(0), batch(0), {}))
    state = tx.init(variables)

    @jax.jit
    def step(variables, state, rows):
        grads, _ = jax.grad(method.loss, has_aux=True)(variables, jax.random.key(0), rows, {})
        updates, state = tx.update(grads, state)
        return optax.apply_updates(variables, updates), state

    for seed in range(30):
        variables, state = step(variables, state, batch(seed))
    rows = batch(99)
    rows["mask"] = rows["mask"].at[3].set(0)
    found = method.evaluate(variables, jax.random.key(0), rows, {})
    assert found["accuracy"].weight == 15 and found["accuracy"].value == 15
    logits = np.asarray(NET.apply(variables, rows["image"] / 255.0)[0], "f8")
    cost = np.log(np.exp(logits).sum(1)) - logits[np.arange(16), rows["label"]]
    np.testing.assert_allclose(found["loss"].value, np.delete(cost, 3).sum(), rtol=1e-4, atol=1e-6)


def test_bits_are_those_of_the_plain_loss_where_nothing_is_asked():
    method, rows = classifier(NET, augmentation="shift:1,rotate:10", smoothing=0.1), batch(1)
    variables = nn.meta.unbox(method.init(KEY, rows, {}))

    def plain(variables, key, rows, given):
        images = augment(key, to_float(rows["image"]), "shift:1,rotate:10")
        logits, _ = NET.apply(variables, images)
        targets = optax.smooth_labels(jax.nn.one_hot(rows["label"], 2), 0.1)
        right = (logits.argmax(-1) == rows["label"]).astype(jnp.float32).mean()
        return optax.softmax_cross_entropy(logits, targets).mean(), right

    one, other = (
        jax.jit(jax.value_and_grad(loss, has_aux=True))(variables, KEY, rows, {})
        for loss in (plain, method.loss)
    )
    assert other[0][1].mutable == {}
    expected = (one[0][0], one[0][1], one[1])
    found = (other[0][0], other[0][1].metrics["accuracy"], other[1])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def softmax_cost(logits, targets):
    logits = np.asarray(logits, np.float64)
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()


def normed(images):
    """The network's logits with the statistics of the batch, and these, by NumPy."""
    images = np.asarray(images, np.float64)
    x = np.stack([images.mean((1, 2, 3)), (images**2).mean((1, 2, 3))], -1)
    mean, variance = x.mean(0), x.var(0)
    return (x - mean) / np.sqrt(variance + 1e-5), mean, variance


def test_batch_statistics_are_made_in_training_and_read_in_evaluation():
    method, rows = classifier(Normed()), batch(2)
    variables = method.init(KEY, rows, {})
    before = variables["batch_stats"]["BatchNorm_0"]
    value, aux = method.loss(variables, KEY, rows, {})
    logits, mean, variance = normed(rows["image"] / 255.0)
    targets = np.eye(2)[rows["label"]]
    np.testing.assert_allclose(value, softmax_cost(logits, targets), rtol=1e-4)
    after = aux.mutable["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(after["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    assert not np.asarray(before["mean"]).any()
    # The average of a mean of 0.1 is not that of the batch: evaluation sees what it is given.
    there = {"mean": jnp.asarray(mean + 0.5, jnp.float32), "var": jnp.ones(2)}
    given = {**variables, "batch_stats": {"BatchNorm_0": there}}
    found = method.evaluate(given, KEY, rows, {})
    shifted = logits * np.sqrt(variance + 1e-5) - 0.5
    wanted = softmax_cost(shifted, targets) * 16
    np.testing.assert_allclose(found["loss"].value, wanted, rtol=1e-4)


def test_dropout_draws_in_training_alone():
    method, rows = classifier(Normed(0.5)), batch(3)
    variables = method.init(KEY, rows, {})
    first, again, other = (
        float(method.loss(variables, jax.random.key(n), rows, {})[0]) for n in (0, 0, 1)
    )
    assert first == again != other
    found = [method.evaluate(variables, jax.random.key(n), rows, {})["loss"] for n in (0, 1)]
    assert found[0].value == found[1].value


@pytest.mark.parametrize("kind", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_batches_are_asked_for_both_classes(kind):
    method, rows = classifier(Normed(), smoothing=0.1, **kind), batch(4)
    variables = method.init(KEY, rows, {})
    value, aux = method.loss(variables, KEY, rows, {})
    key = jax.random.fold_in(KEY, classifiers._MIXING)
    share = np.asarray(shares(key, (4, 4), **kind), np.float64)[..., None]
    images = np.asarray(rows["image"], np.float64) / 255
    logits, _, _ = normed(images * share + images[::-1] * (1 - share))
    own, targets = share.mean(), 0.9 * np.eye(2)[rows["label"]] + 0.05
    targets = own * targets + (1 - own) * targets[::-1]
    np.testing.assert_allclose(value, softmax_cost(logits, targets), rtol=1e-4)
    right = (logits.argmax(1) == targets.argmax(1)).mean()
    assert float(aux.metrics["accuracy"]) == pytest.approx(right)


def test_the_published_recipe_of_images_is_legal_and_whole():
    config = configs.load("hydra:paper_vit", {"data.num_classes": "1000"})
    names = [name for name, _ in parse(config.data.augment)]
    assert names == ["resized_crop", "flip", "randaugment", "erase"]
    view = configs.Audited(config)
    run_file(ROOT / "experiments" / "hydra.py").stages(view)
    unread = [key for key in view.unread() if key.startswith(("model.", "encoder."))]
    assert not unread
    assert config.train.encoder.repeat == 3
