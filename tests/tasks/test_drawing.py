"""What drawing methods show: their grid, their distances to the test split, their probes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.data import open_source
from bigr_jax.metrics.generation import quality
from bigr_jax.metrics.probe import linear_probe
from bigr_jax.tasks.drawing import drawing_report, everything, probe_report
from bigr_jax.train.defaults import section

LABELS = np.repeat(np.arange(10), 2)


@pytest.fixture(scope="module")
def data():
    settings = section(source="digits", size=4, channels=0, num_classes=0, examples=0)
    return {split: open_source(settings, split) for split in ("train", "test")}


def draw(labels):
    return np.random.default_rng(0).uniform(size=(len(labels), 4, 4, 1)).astype(np.float32)


def read(images):
    flat = images.reshape(len(images), -1)
    return jnp.concatenate([flat[:, :5], flat[:, -5:]], axis=1), flat


def test_images_are_compared_with_the_test_split(data):
    found = drawing_report(draw, data, LABELS, read)
    test = data["test"].gather(np.arange(len(data["test"])))
    wanted = quality(draw(LABELS), LABELS, test["image"], read)
    answers = np.asarray(read(test["image"] / np.float32(255))[0]).argmax(-1)
    right = (answers == test["label"]).mean()
    assert found.metrics == {**wanted, "referee_test_accuracy": pytest.approx(right)}


def test_nobody_asks_an_unconditional_model_for_classes(data):
    found = drawing_report(draw, data, LABELS, read, conditional=False)
    assert {"frechet", "recall"} <= found.metrics.keys()
    assert "agreement" not in found.metrics
    named = drawing_report(draw, data, LABELS, read).images["samples"]
    assert found.images["samples"].shape[1] < named.shape[1]


def test_without_a_referee_the_pictures_are_all(data):
    found = drawing_report(draw, data, LABELS)
    assert found.metrics == {}
    # A row per class, of two images.
    height, width, _ = found.images["samples"].shape
    assert height > 4 * width - 200


def test_probes_are_those_of_the_features(data):
    codes = lambda images: (images > 0.3).astype(jnp.float32).reshape(len(images), 4, 4)  # noqa: E731
    pooled = lambda bits: jnp.stack([bits.mean(1), bits.mean(2)], axis=1)  # noqa: E731
    found = probe_report(codes, pooled, data)
    sides = []
    for split in ("train", "test"):
        rows = everything(data[split])
        bits = np.asarray(codes(rows["image"] / np.float32(255)))
        sides.append((bits.mean(1), bits.mean(2), bits.reshape(len(bits), -1), rows))
    (a0, a1, a2, a), (b0, b1, b2, b) = sides
    for name, x, y in (("probe/0", a0, b0), ("probe/1", a1, b1), ("probe_codes", a2, b2)):
        assert found[name] == linear_probe(x, a["label"], y, b["label"])
    assert found["probe"] == found[f"probe/{int(found['probe_layer'])}"]
    pixels = [x["image"].reshape(len(x["image"]), -1) for x in (a, b)]
    assert found["probe_pixels"] == linear_probe(pixels[0], a["label"], pixels[1], b["label"])
