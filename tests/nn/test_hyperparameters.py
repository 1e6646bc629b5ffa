"""Hyper-parameters: ranges, draws for every example, and dropout at rates of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.nn import hyperparameters as hyper
from bigr_jax.nn.hyperparameters import HyperSet

ENTRIES = (("rate", 0.0, 0.9, 0.05), ("length", 0.0, 24.0, 4.0, True))
SET = HyperSet.of(ENTRIES, "method.hypers")


def test_starts_come_back_and_values_stay_in_their_range():
    found = SET.values(SET.free())
    np.testing.assert_allclose(found["rate"], 0.05, rtol=1e-6)
    h = jnp.linspace(-30, 30, 101)[:, None] * jnp.ones(2)
    values = SET.values(h)
    assert values["rate"].min() >= 0 and values["rate"].max() <= 0.9
    lengths = np.asarray(values["length"])
    assert np.all(lengths == np.floor(lengths)) and set(lengths) <= set(range(25))
    assert np.all(np.diff(values["rate"]) >= 0)


def test_no_gradient_passes_through_a_value():
    def total(h):
        return sum(value.sum() for value in SET.values(h).values())

    assert not jax.grad(total)(jnp.ones((3, 2))).any()


@settings(max_examples=20, deadline=None)
@given(st.floats(-6, 6), st.floats(0.01, 3))
def test_perturbations_are_drawn_for_every_row(center, spread):
    raw = jnp.full(2, hyper.softplus_inverse(spread))
    np.testing.assert_allclose(jax.nn.softplus(raw), spread, rtol=1e-4)
    h = hyper.perturbed(jax.random.key(0), jnp.full(2, center), raw, 512)
    assert h.shape == (512, 2) and len(np.unique(h[:, 0])) > 500
    np.testing.assert_allclose(h.mean(0), center, atol=5 * spread / np.sqrt(512) + 1e-5)
    np.testing.assert_allclose(h.std(0), spread, rtol=0.2)
    np.testing.assert_allclose(
        hyper.entropy(raw), 2 * (np.log(spread) + 0.5 * np.log(2 * np.pi * np.e)), atol=1e-3
    )


def test_spreads_stay_positive_wherever_their_free_form_is():
    assert np.all(jax.nn.softplus(jnp.array([-80.0, -5.0, 0.0, 50.0])) > 0)


def test_dropout_keeps_the_mean_at_the_rate_of_every_row():
    rates = jnp.array([0.0, 0.3, 0.9])
    x = jnp.ones((3, 40, 500))
    found = hyper.dropout(jax.random.key(3), x, rates)
    np.testing.assert_allclose((found == 0).mean((1, 2)), rates, atol=0.01)
    np.testing.assert_allclose(found.mean((1, 2)), 1.0, atol=0.08)
    for row, rate in zip(np.asarray(found), np.asarray(rates), strict=True):
        np.testing.assert_allclose(row[row != 0], 1 / (1 - rate), rtol=1e-6)
    slope = jax.grad(lambda r: hyper.dropout(jax.random.key(3), x, r).sum())(rates)
    assert not slope.any()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((("rate", 0.0, 0.9, 0.0),), "rate starts at 0; legal: between 0 and 0.9"),
        ((("rate", 0.0, 0.9, 1.0),), "rate starts at 1"),
        ((("rate", 0.5, 0.5, 0.5),), "rate starts at 0.5"),
        ((("rate", 0.0, 0.9),), "is not .name, low, high, start"),
        ((*ENTRIES, ENTRIES[0]), "a name stands twice in rate, length, rate"),
    ],
)
def test_bad_entries_are_named(entries, said):
    with pytest.raises(UserError, match=f"method.hypers: .*{said}"):
        HyperSet.of(entries, "method.hypers")
