from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from bigr_jax.nn.embed import ClassEmbed, drop_labels


def test_table_has_a_row_for_the_null_class():
    layer, labels = ClassEmbed(classes=3, width=500), np.array([2, 3, 2])
    variables = nn.unbox(layer.init(jax.random.key(0), labels))
    table = variables["params"]["table"]
    assert table.shape == (4, 500)
    assert abs(table.std() - 0.02) < 2e-3
    np.testing.assert_array_equal(layer.apply(variables, labels), table[labels])
    gradient = jax.grad(lambda v: layer.apply(v, labels).sum())(variables)["params"]["table"]
    np.testing.assert_array_equal(gradient[:, 0], [0, 0, 2, 1])


def test_labels_are_dropped_at_the_given_rate():
    labels = np.arange(20_000) % 10
    dropped = np.asarray(drop_labels(jax.random.key(0), labels, 10, 0.1))
    assert abs((dropped == 10).mean() - 0.1) < 0.01
    np.testing.assert_array_equal(dropped[dropped != 10], labels[dropped != 10])
    assert (drop_labels(jax.random.key(1), labels, 10, 0.0) == labels).all()
    assert (drop_labels(jax.random.key(2), labels, 10, 1.0) == 10).all()
