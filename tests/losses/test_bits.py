"""The transcoder's objective against float64 rewritings of it in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.losses.bits import (
    BitObjective,
    balance_weights,
    bound,
    draw,
    masked_mean,
    transcoder_loss,
)
from bigr_jax.ops.bernoulli import make_schedule

TOTAL, BITS = 12, 6
SCHEDULE = make_schedule("linear", TOTAL)
OBJECTIVES = [
    BitObjective(),
    BitObjective("z0", "weighted"),
    BitObjective("flip", "bce"),
    BitObjective("flip", "focal", gamma=2.0),
    BitObjective("z0", "focal", gamma=1.5, alpha=0.25),
    BitObjective("flip", "focal", gamma=1.0, alpha=0.0),
    BitObjective("flip", "weighted", aux=0.3),
    BitObjective("z0", "bce", aux=2.0),
]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def chain(s, t):
    """q(x_t | x_s) as a matrix [x_s, x_t] of the linear schedule."""
    kept = (TOTAL - t) / (TOTAL - s)
    return kept * np.eye(2) + (1 - kept) / 2


def oracle(logits, bits, x_t, t, mask, objective):
    """The masked mean, one bit at a time, from the definitions."""
    total = count = 0.0
    for token in np.ndindex(t.shape):
        y = bits[token] if objective.target == "z0" else bits[token] != x_t[token]
        ones = np.mean(y)
        for k in range(BITS):
            p_one = sigmoid(logits[token][k])
            right = p_one if y[k] else 1 - p_one
            weight = ((1 - ones) if y[k] else ones) + 1 / BITS
            if objective.loss == "bce":
                weight = 1.0
            if objective.loss == "focal":
                if objective.alpha == 0:
                    weight = 1.0
                elif objective.alpha is not None:
                    weight = objective.alpha if y[k] else 1 - objective.alpha
                weight *= (1 - right) ** objective.gamma
            value = -weight * np.log(right)
            if objective.aux:
                flipped = objective.target == "flip" and x_t[token][k] == 1
                p_x0 = 1 - p_one if flipped else p_one
                args = bits[token][k], p_x0, int(x_t[token][k]), t[token]
                value += objective.aux * cross_entropy(*args)
            total += mask[token] * value
            count += mask[token]
    return total / count


def cross_entropy(x_0, p_x0, x_t, t):
    """Cross entropy between q(x_{t-1} | x_t, x_0) with the true and with the predicted x_0."""

    def earlier(p):
        joint = np.array([1 - p, p]) @ chain(0, t - 1) * chain(t - 1, t)[:, x_t]
        return joint / joint.sum()

    if t == 1:
        return -np.log(p_x0 if x_0 else 1 - p_x0)
    return -(earlier(float(x_0)) * np.log(earlier(p_x0))).sum()


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    shape = (2, 3)
    bits, x_t = rng.integers(0, 2, (2, *shape, BITS)).astype(np.float32)
    t = np.array([[1, 2, TOTAL], [1, 5, TOTAL - 1]])
    mask = np.array([[1, 1, 0], [1, 0, 1.0]], np.float32)
    return 2 * rng.standard_normal((*shape, BITS)), bits, x_t, t, mask


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_value_and_gradient(case, objective):
    logits, bits, x_t, t, mask = case

    def ours(logits):
        found = transcoder_loss(logits, bits, x_t, t, SCHEDULE, mask, objective)
        return found.loss, found

    gradient, found = jax.jit(jax.grad(ours, has_aux=True))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(found.loss, oracle(*case, objective), rtol=2e-6)
    assert found.per_bit.shape == logits.shape
    rng = np.random.default_rng(1)
    for _ in range(3):
        d = rng.standard_normal(logits.shape)
        ends = [oracle(logits + e * d, bits, x_t, t, mask, objective) for e in (1e-5, -1e-5)]
        np.testing.assert_allclose(
            (gradient * d).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6
        )
    # Tokens that do not count get no gradient.
    np.testing.assert_array_equal(gradient[mask == 0], 0.0)


def test_accuracy_counts_masked_bits(case):
    _, bits, x_t, t, mask = case
    flip = np.abs(bits - x_t)
    logits = np.where(flip == 1, 1.0, -1.0)
    logits[0, 0, :2] *= -1
    logits[0, 2] *= -1
    found = transcoder_loss(jnp.asarray(logits), bits, x_t, t, SCHEDULE, mask)
    np.testing.assert_allclose(found.accuracy, 1 - 2 / (4 * BITS), rtol=1e-6)


def test_a_token_without_flips():
    logits = jnp.linspace(-3.0, 3.0, BITS)[None]
    bits = jnp.ones((1, BITS))
    found = transcoder_loss(logits, bits, bits, jnp.array([4]), SCHEDULE)
    np.testing.assert_allclose(found.per_bit, jax.nn.softplus(logits) / BITS, rtol=1e-6)


def test_one_time_is_direct_cross_entropy(case):
    logits, bits, x_t, _, mask = case
    once = make_schedule("linear", 1)
    t = jnp.ones(mask.shape, jnp.int32)
    exact = -np.log(sigmoid(np.where(bits == 1, logits, -logits)))
    exact = (exact.mean(-1) * mask).sum() / mask.sum()
    direct = transcoder_loss(
        logits := jnp.asarray(logits), bits, x_t, t, once, mask, BitObjective("direct", "bce")
    )
    np.testing.assert_allclose(direct.loss, exact, rtol=1e-5)
    # The bound of a single time is that cross entropy too.
    twice = transcoder_loss(
        logits, bits, x_t, t, once, mask, BitObjective("direct", "bce", aux=1.0)
    )
    np.testing.assert_allclose(twice.loss, 2 * exact, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_saturated_logits_are_finite(objective):
    bits, x_t = jnp.array([[0.0, 1.0] * 3] * 3), jnp.array([[1.0, 1.0] * 3] * 3)
    t = jnp.array([1, 2, TOTAL])

    def loss(logits):
        return transcoder_loss(logits, bits, x_t, t, SCHEDULE, None, objective).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(
        jnp.tile(jnp.array([200.0, -200.0, 0.0]), (3, 2))
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_balance_weights():
    y = jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    exact = [[1.0, 0.5, 0.5, 0.5], [0.25] * 4, [0.25] * 4]
    np.testing.assert_allclose(balance_weights(y), exact)


def test_masked_mean():
    values = jnp.array([[1.0, 3.0], [10.0, 20.0]])
    assert masked_mean(values, None) == 8.5
    assert masked_mean(values, jnp.array([True, False])) == 2.0
    np.testing.assert_allclose(masked_mean(values, jnp.array([0.25, 0.25])), 8.5)
    assert masked_mean(values, jnp.zeros(2)) == 0.0


def test_draw():
    bits = jnp.tile(jnp.array([0.0, 1.0]), (20000, 1))
    t, x_t = draw(jax.random.key(0), bits, SCHEDULE, "flip")
    assert t.shape == (20000,) and t.dtype == jnp.int32
    assert x_t.shape == bits.shape and x_t.dtype == jnp.float32
    share = np.bincount(t, minlength=TOTAL + 1) / 20000
    assert share[0] == 0 and len(share) == TOTAL + 1
    np.testing.assert_allclose(share[1:], 1 / TOTAL, atol=0.01)
    for time in (1, TOTAL // 2, TOTAL):
        exact = time / TOTAL / 2
        found = np.asarray(x_t)[np.asarray(t) == time].mean(axis=0)
        np.testing.assert_allclose(found, [exact, 1 - exact], atol=0.06)
    again = draw(jax.random.key(0), bits, SCHEDULE, "z0")
    np.testing.assert_array_equal(again[0], t)


def test_draw_for_direct_prediction():
    bits = jnp.ones((1, 1, 4000))
    t, x_t = draw(jax.random.key(0), bits, make_schedule("linear", 1), "direct")
    np.testing.assert_array_equal(t, 1)
    assert abs(x_t.mean() - 0.5) < 0.05
    with pytest.raises(ValueError, match="schedule of one time, got 12"):
        draw(jax.random.key(0), bits, SCHEDULE, "direct")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"target": "flips"},
            r"target='flips' is not known \(did you mean 'flip'\?\); legal: flip",
        ),
        ({"loss": "wbce"}, r"objective.loss='wbce' is not known.*legal: weighted, focal, bce"),
        ({"gamma": -1.0}, "objective.gamma=-1.0: legal: 0 and more"),
        ({"aux": float("inf")}, "objective.aux=inf: legal: 0 and more"),
        ({"alpha": 2.0}, "objective.alpha=2.0: legal: None, or from 0 to 1"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        BitObjective(**fields)


def test_draw_names_an_unknown_target():
    with pytest.raises(UserError, match="target='noise' is not known"):
        draw(jax.random.key(0), jnp.zeros((1, 2)), SCHEDULE, "noise")


def transition(p_x0, x_t, t):
    """The model's p(x_{t-1} = 1 | x_t), from its P(x_0 = 1), which is the last of them itself."""
    if t == 1:
        return p_x0
    prior = np.array([1 - p_x0, p_x0]) @ chain(0, t - 1)
    joint = prior * chain(t - 1, t)[:, x_t]
    return joint[1] / joint.sum()


@pytest.mark.parametrize("target", ["flip", "z0"])
@pytest.mark.parametrize("x_0", [0, 1])
def test_bound_is_the_divergence_of_all_steps_and_above_the_code_length(target, x_0):
    # Every time and every noisy bit once, weighted by how often they are drawn.
    logits = np.random.default_rng(3).normal(size=(TOTAL + 1, 2))
    t, x_t = np.indices((TOTAL + 1, 2)).reshape(2, -1)[:, 2:]
    ours = bound(
        jnp.asarray(logits[t, x_t])[:, None], jnp.full((len(t), 1), x_0), x_t[:, None], t,
        SCHEDULE, target,
    )  # fmt: skip
    p_one = sigmoid(logits)
    if target == "flip":
        p_one[:, 1] = 1 - p_one[:, 1]
    seen = np.array([chain(0, time)[x_0, bit] for time, bit in zip(t, x_t, strict=True)])
    estimate = (np.asarray(ours)[:, 0] * seen / TOTAL).sum()
    wanted, likelihood = 0.0, np.full(2, 0.5)
    for time in range(TOTAL, 0, -1):
        step = np.zeros((2, 2))
        for bit in (0, 1):
            p = transition(p_one[time, bit], bit, time)
            step[bit] = 1 - p, p
            q = transition(x_0, bit, time)
            q = np.array([1 - q, q])
            ratio = np.where(q > 0, q / step[bit], 1)
            wanted += chain(0, time)[x_0, bit] * (q * np.log2(ratio)).sum()
        likelihood = likelihood @ step
    np.testing.assert_allclose(estimate, wanted, rtol=1e-5)
    assert wanted >= -np.log2(likelihood[x_0])


def test_bound_of_a_single_time_is_the_code_length():
    once = make_schedule("linear", 1)
    logits, bits = jnp.array([[-3.0, 0.0, 2.0]]), jnp.array([[0.0, 1.0, 1.0]])
    found = bound(logits, bits, 1 - bits, jnp.ones((1,), jnp.int32), once, "direct")
    p = sigmoid(np.array([-3.0, 0.0, 2.0]))
    np.testing.assert_allclose(found[0], -np.log2([1 - p[0], p[1], p[2]]), rtol=1e-6)
