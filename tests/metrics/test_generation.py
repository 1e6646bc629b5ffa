"""What is measured of generated images is what each metric says of their features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.metrics.agreement import agreement
from bigr_jax.metrics.frechet import frechet, moments
from bigr_jax.metrics.generation import quality
from bigr_jax.metrics.kernel import kernel_distance
from bigr_jax.metrics.neighbours import precision_recall

RNG = np.random.default_rng(0)
MAP, HEAD = RNG.standard_normal((18, 5)), RNG.standard_normal((5, 3))
GENERATED = RNG.uniform(size=(23, 3, 3, 2)).astype(np.float32)
REAL = RNG.integers(0, 256, (31, 3, 3, 2)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 23)


def read(images):
    features = jnp.tanh(images.reshape(len(images), -1) @ jnp.asarray(MAP, jnp.float32))
    return features @ jnp.asarray(HEAD, jnp.float32), features


def features_of(images):
    pixels = images / 255.0 if images.dtype == np.uint8 else images
    return np.tanh(pixels.reshape(len(images), -1).astype(np.float64) @ MAP)


@pytest.mark.parametrize("size", [7, 250])
def test_metrics_of_the_features_whatever_the_batches(size):
    found = quality(GENERATED, LABELS, REAL, read, size)
    drawn, real = features_of(GENERATED), features_of(REAL)
    wanted = {
        "frechet": frechet(moments(drawn), moments(real)),
        "kernel": kernel_distance(drawn, real),
        **precision_recall(drawn, real),
        "agreement": ((drawn @ HEAD).argmax(1) == LABELS).mean(),
    }
    worst = found.pop("worst_class")
    assert found == pytest.approx(wanted, rel=1e-4)
    assert worst == agreement(lambda x: read(x)[0], GENERATED, LABELS)["worst_class"]
    assert all(type(value) is float for value in found.values())


def test_without_labels_there_is_no_agreement():
    found = quality(GENERATED, None, REAL, read)
    assert list(found) == ["frechet", "kernel", "precision", "recall"]


def test_the_same_images_as_bytes_and_as_floats():
    found = quality(REAL / np.float64(255), None, REAL, read)
    assert found["frechet"] == pytest.approx(0.0, abs=1e-9)
    assert (found["precision"], found["recall"]) == (1.0, 1.0)


def test_one_program_in_full_precision_reads_all():
    shapes = []

    def traced(images):
        shapes.append((images.shape, jax.config.jax_default_matmul_precision))
        return read(images)

    quality(GENERATED, LABELS, REAL, traced, 10)
    assert shapes == [((10, 3, 3, 2), "highest")]


@pytest.mark.parametrize(
    ("generated", "labels", "kind", "message"),
    [
        (GENERATED[:, :2], LABELS, ValueError, r"generated \(23, 2, 3, 2\) and real \(31, 3, 3, 2"),
        (GENERATED[:, 0], LABELS, ValueError, r"generated \(23, 3, 2\) and real"),
        (GENERATED, LABELS[:5], ValueError, r"labels \(5,\) for logits \(23, 3\)"),
        (GENERATED[:0], None, UserError, r"images \(0, 3, 3, 2\): there is none to read"),
        (GENERATED[:3], None, UserError, "generated: 3 rows given, legal: 4 and more"),
        (GENERATED * np.nan, None, UserError, "generated: 23 of 23 rows hold numbers that are not"),
    ],
)
def test_mistakes_are_named(generated, labels, kind, message):
    with pytest.raises(kind, match=message):
        quality(generated, labels, REAL, read)
