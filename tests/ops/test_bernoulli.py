"""The diffusion of bits against chains that are enumerated in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.ops.bernoulli import (
    bit_probability,
    make_schedule,
    posterior,
    q_probability,
    q_sample,
    sampling_times,
    unflip,
)

NAMES = ("linear", "cos", "sigmoid")
FEW = settings(max_examples=40, deadline=None)


def exact_kept(name, total):
    """k_0 ... k_T in float64, written from the formulas."""
    u = np.arange(total + 1) / total
    if name == "linear":
        return (total - np.arange(total + 1)) / total
    if name == "cos":
        return 0.5 + 0.5 * np.cos(np.pi * u)
    return (np.tanh(1.875) - np.tanh(1.875 * u)) / np.tanh(1.875)


def transition(name, total, s, t):
    """q(x_t | x_s) as a matrix [x_s, x_t], the product of the one-step matrices."""
    k = exact_kept(name, total)
    result = np.eye(2)
    for i in range(s + 1, t + 1):
        beta = k[i] / k[i - 1]
        result = result @ (beta * np.eye(2) + (1 - beta) / 2)
    return result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 7, 256])
def test_schedule_starts_clean_and_ends_as_noise(name, total):
    schedule = make_schedule(name, total)
    assert schedule.total == total
    assert all(table.shape == (total + 1,) and table.dtype == np.float32 for table in schedule)
    assert schedule.k[0] == 1.0 and schedule.k[-1] == 0.0
    assert (np.diff(schedule.k) < 0).all()
    np.testing.assert_allclose(schedule.k, exact_kept(name, total), atol=2e-7)
    np.testing.assert_allclose(schedule.b, (1 - exact_kept(name, total)) / 2, atol=2e-7)
    np.testing.assert_allclose(np.cumprod(schedule.beta.astype(float)), schedule.k, atol=1e-6)


def test_unknown_schedule_and_no_times():
    with pytest.raises(UserError, match=r"schedule='cosine' is not known .*'cos'.*legal: linear"):
        make_schedule("cosine", 8)
    with pytest.raises(ValueError, match="total=0"):
        make_schedule("linear", 0)


@FEW
@given(st.integers(2, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_linear_steps_multiply_to_the_closed_form(case):
    total, s = case
    beta = make_schedule("linear", total).beta.astype(float)
    for t in {s + 1, (s + 1 + total) // 2, total}:
        np.testing.assert_allclose(
            np.prod(beta[s + 1 : t + 1]), (total - t) / (total - s), atol=2e-6
        )


@pytest.mark.parametrize("name", NAMES)
def test_chapman_kolmogorov(name):
    total, schedule = 24, make_schedule(name, 24)
    for s, t in ((0, 1), (1, 2), (5, 17), (23, 24), (0, 24)):
        two_steps = transition(name, total, 0, s) @ transition(name, total, s, t)
        for x_0 in (0, 1):
            ours = q_probability(jnp.full((1,), float(x_0)), jnp.asarray(t), schedule)
            np.testing.assert_allclose(ours, two_steps[x_0, 1], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_posterior_is_bayes_rule_over_the_chain(name):
    total, schedule = 24, make_schedule(name, 24)
    for s, t in ((0, 1), (1, 2), (0, 24), (5, 17), (22, 24)):
        for p_x0 in (0.0, 0.03, 0.5, 1.0):
            prior = np.array([1 - p_x0, p_x0]) @ transition(name, total, 0, s)
            for x_t in (0, 1):
                joint = prior * transition(name, total, s, t)[:, x_t]
                ours = posterior(
                    jnp.full((1,), float(x_t)),
                    jnp.full((1,), p_x0),
                    jnp.asarray(t),
                    jnp.asarray(s),
                    schedule,
                )
                np.testing.assert_allclose(ours, joint[1] / joint.sum(), atol=2e-6)


@FEW
@given(
    st.sampled_from(NAMES),
    st.integers(1, 256),
    st.floats(0, 1, width=32),
    st.data(),
)
def test_posterior_is_a_probability(name, t, p_x0, data):
    s = data.draw(st.integers(0, t - 1))
    schedule = make_schedule(name, 256)
    ours = posterior(jnp.arange(2.0), jnp.full((2,), p_x0), t, s, schedule)
    assert np.isfinite(ours).all() and (ours >= 0).all() and (ours <= 1).all()
    # A one at time t never makes a one at time s less likely.
    assert ours[1] >= ours[0] - 1e-6


def test_posterior_takes_a_time_per_token():
    schedule = make_schedule("linear", 16)
    rng = np.random.default_rng(0)
    x_t = rng.integers(0, 2, (1, 3, 5)).astype(np.float32)
    p = rng.random((1, 3, 5), np.float32)
    t, s = jnp.array([[16, 9, 1]]), jnp.array([[3, 8, 0]])
    together = posterior(x_t, p, t, s, schedule)
    for i in range(3):
        alone = posterior(x_t[0, i], p[0, i], t[0, i], s[0, i], schedule)
        np.testing.assert_allclose(together[0, i], alone, rtol=1e-6)


def test_gradient_of_the_posterior():
    schedule = make_schedule("linear", 16)
    t, s, r, k, b = 9, 4, 7 / 12, 12 / 16, 2 / 16
    for x_t in (0.0, 1.0):
        likely = r * x_t + (1 - r) / 2
        for p in (0.1, 0.8):
            a = k * p + b
            # d/da of a l / (a l + (1 - a)(1 - l)), times da/dp
            exact = k * likely * (1 - likely) / (a * likely + (1 - a) * (1 - likely)) ** 2
            ours = jax.grad(
                lambda p, x_t=x_t: posterior(jnp.full((1,), x_t), p[None], t, s, schedule)[0]
            )(jnp.float32(p))
            np.testing.assert_allclose(ours, exact, rtol=1e-5)


@FEW
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=1, max_size=9))
def test_unflip_is_an_involution(pairs):
    x_t = np.array([x for x, _ in pairs], np.float32)
    p = np.array([p for _, p in pairs], np.float32)
    once = unflip(x_t, p)
    np.testing.assert_allclose(once, np.where(x_t == 1, 1 - p, p), atol=1e-7)
    np.testing.assert_allclose(unflip(x_t, once), p, atol=1e-7)


def test_bit_probability_of_every_target():
    logits, x_t = jnp.array([3.0, -1.0, 0.0]), jnp.array([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-np.array([3.0, -1.0, 0.0])))
    np.testing.assert_allclose(bit_probability(logits, x_t, "z0"), p, rtol=1e-6)
    np.testing.assert_allclose(bit_probability(logits, x_t, "direct"), p, rtol=1e-6)
    flipped = [1 - p[0], p[1], 1 - p[2]]
    np.testing.assert_allclose(bit_probability(logits, x_t, "flip"), flipped, rtol=1e-6)
    assert bit_probability(logits.astype(jnp.bfloat16), x_t, "flip").dtype == jnp.float32
    with pytest.raises(UserError, match=r"target='flop' is not known .*'flip'"):
        bit_probability(logits, x_t, "flop")


def test_draws_follow_their_probabilities():
    schedule, key = make_schedule("linear", 8), jax.random.key(3)
    x_0 = jnp.tile(jnp.array([0.0, 1.0]), (20000, 3, 1))
    t = jnp.array([0, 5, 8])
    x_t = q_sample(key, x_0, t, schedule)
    assert x_t.dtype == jnp.float32 and set(np.unique(x_t)) == {0.0, 1.0}
    np.testing.assert_array_equal(x_t[:, 0], x_0[:, 0])
    exact = [[0, 1], [0.3125, 0.6875], [0.5, 0.5]]
    np.testing.assert_allclose(x_t.mean(axis=0), exact, atol=5 * 0.5 / np.sqrt(20000))
    np.testing.assert_array_equal(x_t, q_sample(key, x_0, t, schedule))


def test_sampling_times():
    assert sampling_times(256, 2) == (256, 1)
    assert sampling_times(1, 1) == sampling_times(1, 100) == (1,)
    assert sampling_times(64, 1) == (64,)
    assert sampling_times(5, 5) == sampling_times(5, 9) == (5, 4, 3, 2, 1)
    with pytest.raises(ValueError, match="count=0"):
        sampling_times(8, 0)


@FEW
@given(st.integers(2, 400), st.integers(2, 400))
def test_sampling_times_fall_from_the_last_to_the_first(total, count):
    times = sampling_times(total, count)
    assert len(times) == min(total, count)
    assert (times[0], times[-1]) == (total, 1)
    assert (np.diff(times) < 0).all()
