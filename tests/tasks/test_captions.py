"""The reader of captions against float64, and what it says of drawings that are right or wrong."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.data.captioned import CaptionedSource
from bigr_jax.data.source import Info
from bigr_jax.nn.embed import Text
from bigr_jax.tasks.captions import caption_reader, caption_report, distinct, summary, unit

CAPTIONS = ("dark", "grey", "light", "white")
LEVELS = np.array([0, 80, 160, 255], np.uint8)
ROWS = 40


class Linear(nn.Module):
    """A reader that is one matrix."""

    @nn.compact
    def __call__(self, images):
        flat = images.reshape(len(images), -1)
        return nn.Dense(4, use_bias=False)(flat), flat


@pytest.fixture(scope="module")
def test_set():
    which = np.arange(ROWS) % 4
    noise = np.random.default_rng(0).integers(-3, 4, (ROWS, 2, 2, 1))
    images = np.clip(LEVELS[which][:, None, None, None] + noise, 0, 255).astype(np.uint8)
    info = Info("levels", 4, CAPTIONS, (2, 2, 1), "none", "made")
    text = (np.eye(4, dtype=np.float32)[:, None] * 3, np.ones((4, 1), bool))
    return CaptionedSource(images, which, info, CAPTIONS, which, text)


def read(images):
    """Says the nearest of the four levels."""
    levels = images.mean((1, 2, 3))[:, None] * 255
    return jax.nn.softmax(-((levels - LEVELS) ** 2) / 100), images.reshape(len(images), -1)


def test_the_loss_is_that_of_the_right_captions():
    rng = np.random.default_rng(1)
    text = rng.normal(size=(5, 3, 4)).astype(np.float32)
    text[4] = text[1]
    lengths = np.array([3, 2, 1, 3, 2])
    batch = {
        "image": rng.integers(0, 256, (5, 2, 2, 1), np.uint8),
        "text": text,
        "text_mask": np.arange(3) < lengths[:, None],
        "mask": np.array([1, 1, 1, 0, 1], np.float32),
    }
    method = caption_reader(Linear())
    variables = method.init(jax.random.key(0), batch, {})
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    vectors = batch["image"].reshape(5, 4) / 255.0 @ kernel
    asked = np.stack(
        [row[:n].sum(0) for row, n in zip(text.astype(np.float64), lengths, strict=True)]
    )
    vectors, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, asked))
    p = np.exp(10 * vectors @ asked.T)
    p /= p.sum(1, keepdims=True)
    cost = -np.log(np.diag(p))
    cost[[1, 4]] = -np.log(p[[1, 4]][:, [1, 4]]).mean(1)
    found = method.evaluate(variables, jax.random.key(0), batch, {})
    kept = batch["mask"] > 0
    assert found["loss"].value / found["loss"].weight == pytest.approx(cost[kept].mean(), rel=1e-4)
    right = [row in ((1, 4) if own in (1, 4) else (own,)) for own, row in enumerate(p.argmax(1))]
    assert found["accuracy"].value == np.array(right)[kept].sum()
    value, aux = method.loss(variables, jax.random.key(0), batch, {})
    assert value == pytest.approx(cost.mean(), rel=1e-4)
    assert aux.metrics["accuracy"] == pytest.approx(np.mean(right))


def test_smoothing_blurs_what_is_right():
    rng = np.random.default_rng(2)
    batch = {
        "image": rng.integers(0, 256, (4, 2, 2, 1), np.uint8),
        "text": rng.normal(size=(4, 1, 4)).astype(np.float32),
        "text_mask": np.ones((4, 1), bool),
    }
    plain, blurred = caption_reader(Linear()), caption_reader(Linear(), smoothing=1.0)
    variables = plain.init(jax.random.key(0), batch, {})
    vectors, _ = Linear().apply(variables, batch["image"] / np.float32(255))
    logs = jax.nn.log_softmax(10 * unit(vectors) @ unit(jnp.asarray(batch["text"][:, 0])).T)
    value, _ = blurred.loss(variables, jax.random.key(0), batch, {})
    assert value == pytest.approx(-float(logs.mean()), rel=1e-4)


def test_padding_has_no_part_in_a_summary():
    features = np.array([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[0.0, 0.0]] * 3])
    found = summary(Text(features, np.array([[True, True, False], [False] * 3])))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("most, count", [(2, 2), (4, 4), (9, 4)])
def test_a_row_for_each_of_some_captions(test_set, most, count):
    rows = distinct(test_set, most)
    assert len(np.unique(test_set.which[rows])) == len(rows) == count


def test_right_drawings_are_told_from_wrong_ones(test_set):
    asked = distinct(test_set)
    paint = lambda numbers: np.ones((len(numbers), 2, 2, 1)) * LEVELS[numbers][:, None, None, None]  # noqa: E731
    blur = np.random.default_rng(3).normal(0, 0.01, (20, 2, 2, 1))
    right = caption_report(lambda n: paint(n) / 255 + blur, asked, test_set, 5, read)
    wrong = caption_report(lambda n: paint((n + 1) % 4) / 255 + blur, asked, test_set, 5, read)
    assert right.metrics["caption_top1"] == 1 and right.metrics["caption_top1_shuffled"] == 0
    assert wrong.metrics["caption_top1"] == 0
    assert wrong.metrics["caption_top1_shuffled"] == pytest.approx(1 / 3)
    assert right.metrics["caption_top1_real"] == wrong.metrics["caption_top1_real"] == 1
    assert {"frechet", "kernel", "precision", "recall"} <= right.metrics.keys()


def test_without_a_reader_the_pictures_are_all(test_set):
    found = caption_report(lambda n: np.zeros((len(n), 2, 2, 1)), distinct(test_set), test_set, 3)
    assert found.metrics == {} and found.images["samples"].dtype == np.uint8
