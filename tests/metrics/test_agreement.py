"""Agreement of a classifier with the classes asked for."""

import jax
import numpy as np

from bigr_jax.metrics.agreement import agreement


def test_counts_right_answers_whatever_the_batches():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(17, 2, 2, 1)).astype("f4")
    answers = (images.mean((1, 2, 3)) * 3).astype(int)
    labels = np.where(np.arange(17) % 4 == 0, (answers + 1) % 3, answers)

    def predict(x):
        return jax.nn.one_hot((x.mean((1, 2, 3)) * 3).astype(int), 3)

    expected = (answers == labels).mean()
    worst = min((answers == labels)[labels == c].mean() for c in np.unique(labels))
    for size in (1, 5, 17, 40):
        found = agreement(predict, images, labels, size)
        np.testing.assert_allclose(found["agreement"], expected)
        np.testing.assert_allclose(found["worst_class"], worst)


def test_bytes_are_read_as_zero_to_one():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    found = agreement(
        lambda x: jax.nn.one_hot(x[:, 0, 0, 0].astype(int), 2), images, np.array([0, 1]), 2
    )
    assert found == {"agreement": 1.0, "worst_class": 1.0}
