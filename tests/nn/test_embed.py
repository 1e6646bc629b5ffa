from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.nn.embed import ClassEmbed, Text, TextEmbed, drop_condition

TEXTS = TextEmbed(length=3, features=5, width=4)


def texts(*lengths):
    features = np.random.default_rng(0).normal(size=(len(lengths), 3, 5)).astype(np.float32)
    return Text(features, np.arange(3) < np.array(lengths)[:, None])


@pytest.fixture(scope="module")
def born():
    return TEXTS.init(jax.random.key(0), texts(3))


@pytest.fixture(scope="module")
def variables(born):
    """Parameters of a size at which each matters."""
    rng = np.random.default_rng(1)
    plain = nn.unbox(born)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), plain["params"])
    return {**plain, "params": drawn}


embed = jax.jit(TEXTS.apply)


def test_table_has_a_row_for_the_null_class():
    layer, labels = ClassEmbed(classes=3, width=500), np.array([2, 3, 2])
    variables = nn.unbox(layer.init(jax.random.key(0), labels))
    table = variables["params"]["table"]
    assert table.shape == (4, 500)
    assert abs(table.std() - 0.02) < 2e-3
    np.testing.assert_array_equal(layer.apply(variables, labels), table[labels])
    gradient = jax.grad(lambda v: layer.apply(v, labels).sum())(variables)["params"]["table"]
    np.testing.assert_array_equal(gradient[:, 0], [0, 0, 2, 1])


def test_texts_against_float64(variables):
    text = texts(3, 1, 2)
    found = embed(variables, text)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    for row in range(3):
        h = text.features[row].astype(np.float64) @ weights["mlp_in"]["kernel"]
        cubic = np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)
        tokens = (0.5 * h * (1 + np.tanh(cubic))) @ weights["mlp_out"]["kernel"]
        mean = tokens[text.mask[row]].mean(0)
        pooled = mean @ weights["pooled"]["kernel"] + weights["pooled"]["bias"]
        np.testing.assert_allclose(found.tokens[row], tokens, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.pooled[row, 0], pooled, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.mask, text.mask)


def test_an_empty_text_is_the_null_text_whole(variables):
    text = texts(2, 0)
    found = embed(variables, text)
    null = variables["buffers"]["null"]
    other = embed(variables, Text(np.stack([text.features[0], null]), np.ones((2, 3), bool)))
    np.testing.assert_array_equal(found.mask, [[True, True, False], [True] * 3])
    np.testing.assert_array_equal(found.tokens[1], other.tokens[1])
    np.testing.assert_array_equal(found.pooled[1], other.pooled[1])


def test_what_lies_behind_a_text_is_not_in_its_summary(variables):
    text = texts(2)
    changed = text._replace(features=np.where(text.mask[..., None], text.features, 9.0))
    plain, other = embed(variables, text), embed(variables, changed)
    np.testing.assert_array_equal(plain.pooled, other.pooled)
    assert abs(plain.tokens - other.tokens)[0, 2].max() > 1


def test_the_null_text_is_noise_that_is_not_learnt(born):
    wide = TextEmbed(length=30, features=400, width=4)
    text = Text(np.zeros((1, 30, 400)), np.zeros((1, 30), bool))
    null = wide.init(jax.random.key(1), text)["buffers"]["null"]
    assert null.shape == (30, 400) and abs(null.std() * math.sqrt(400) - 1) < 0.03
    assert set(born["params"]) == {"mlp_in", "mlp_out", "pooled"}
    assert set(born["params"]["mlp_in"]) == set(born["params"]["mlp_out"]) == {"kernel"}


def test_half_features_are_read_in_float32(variables):
    text = texts(3)
    half = text._replace(features=text.features.astype(np.float16))
    single = half._replace(features=half.features.astype(np.float32))
    np.testing.assert_array_equal(embed(variables, half).tokens, embed(variables, single).tokens)


@pytest.mark.parametrize("shape", [(1, 2, 5), (1, 3, 4)])
def test_texts_of_another_shape_are_refused(variables, shape):
    with pytest.raises(ValueError, match=r"expected \(1, 3, 5\), \(1, 3\)"):
        TEXTS.apply(variables, Text(np.zeros(shape), np.ones(shape[:2], bool)))


def test_labels_are_dropped_at_the_given_rate():
    labels, null = np.arange(20_000) % 10, np.full(20_000, 10)
    dropped = np.asarray(drop_condition(jax.random.key(0), labels, null, 0.1))
    assert abs((dropped == 10).mean() - 0.1) < 0.01
    np.testing.assert_array_equal(dropped[dropped != 10], labels[dropped != 10])
    assert (drop_condition(jax.random.key(1), labels, null, 0.0) == labels).all()
    assert (drop_condition(jax.random.key(2), labels, null, 1.0) == 10).all()


def test_texts_are_dropped_whole():
    text = Text(jnp.ones((500, 3, 2)), jnp.ones((500, 3), bool))
    null = jax.tree.map(jnp.zeros_like, text)
    found = drop_condition(jax.random.key(0), text, null, 0.3)
    told = np.asarray(found.mask.any(1))
    np.testing.assert_array_equal(found.mask, np.broadcast_to(told[:, None], (500, 3)))
    np.testing.assert_array_equal(found.features.max((1, 2)), told)
    assert abs(told.mean() - 0.7) < 0.06
