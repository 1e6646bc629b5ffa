"""The denoising loop: against a plain loop, an exact denoiser, and at the ends of guidance."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.generate.bernoulli import denoise_bits, predict_bits, undecided
from bigr_jax.generate.guidance import pair
from bigr_jax.models.transcoder import Denoiser
from bigr_jax.ops.bernoulli import make_schedule, posterior, sampling_times

TOTAL = 8
SCHEDULE = make_schedule("linear", TOTAL)
SHAPE = (3, 2, 4)


def toy(x_t, t, condition):
    """Logits [..., K] from bits, time and a condition [..., K]."""
    return condition + (2.0 * x_t - 1.0) * (1.0 - t / TOTAL) - 0.3


def uniforms(key=0, shape=SHAPE):
    return lambda step: jax.random.uniform(jax.random.fold_in(jax.random.key(key), step), shape)


def conditions(shape=SHAPE):
    return jax.random.normal(jax.random.key(5), (2, *shape))


def run(condition, guidance=None, target="flip", **options):
    times = sampling_times(TOTAL, 4)
    return denoise_bits(
        toy, condition, uniforms(), SCHEDULE, times, target=target, guidance=guidance, **options
    )


@pytest.mark.parametrize("target", ["flip", "z0"])
def test_scan_is_the_loop(target):
    conditional, null = conditions()
    times, draw, scale, temperature = sampling_times(TOTAL, 4), uniforms(), 2.5, 0.7
    chance = 0.5
    for i, (t, s) in enumerate(itertools.pairwise((*times, 0))):
        x = (np.asarray(draw(i)) < chance).astype(np.float32)
        branches = [np.asarray(toy(x, t, c)) / temperature for c in (conditional, null)]
        logits = branches[1] + scale * (branches[0] - branches[1])
        p = 1 / (1 + np.exp(-logits))
        p = np.where(x == 1, 1 - p, p) if target == "flip" else p
        chance = np.asarray(posterior(x, p, t, s, SCHEDULE))
    ours = jax.jit(lambda c: run(c, scale, target, temperature=temperature))(
        pair(conditional, null)
    )
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, p, atol=1e-5)


@pytest.mark.parametrize("target", ["flip", "z0"])
@pytest.mark.parametrize("block", [1, 2, None])
def test_steps_that_decide_nothing_are_left_out(target, block):
    total, shape = 64, (2, 5, 3)
    schedule, times = make_schedule("linear", total), sampling_times(total, 40)
    needed = jnp.asarray(np.random.default_rng(0).random(shape[:2]) < 0.7)
    calls = []

    def denoise(x_t, t, condition):
        jax.debug.callback(lambda: calls.append(x_t.shape[1]))
        return 3.0 * condition + (2.0 * x_t - 1.0) * x_t.sum(-1, keepdims=True) - t / total

    def found(needed, block):
        calls.clear()
        options = {"target": target, "guidance": 2.5, "needed": needed, "block": block}
        condition = pair(*conditions(shape))
        draw = uniforms(2, shape)
        p = jax.jit(
            lambda: denoise_bits(denoise, condition, draw, schedule, times, **options),
            # The bits of two programs: the level of the other tests rounds them in two ways.
            compiler_options={"xla_backend_optimization_level": 1},
        )()
        jax.effects_barrier()
        return np.asarray(p), sum(calls)

    whole, all_calls = found(None, None)
    lazy, calls_made = found(needed, block)
    np.testing.assert_array_equal(lazy[needed], whole[needed])
    assert all_calls == 5 * 40
    assert calls_made < all_calls * (0.8 if block else 1.01)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["linear", "cos", "sigmoid"]), st.integers(1, 300), st.integers(0, 2**31))
def test_what_is_decided_is_so_whatever_the_denoiser_says(name, total, seed):
    rng = np.random.default_rng(seed)
    schedule = make_schedule(name, total)
    t = int(rng.integers(1, total + 1))
    s = int(rng.integers(0, t))
    x_t = jnp.asarray(rng.integers(0, 2, (200, 1)), jnp.float32)
    # Draws at the very ends of the range are the hard ones.
    ends = np.stack([np.asarray(posterior(x_t, p, t, s, schedule)) for p in (0.0, 1.0)])
    which, drawn = rng.integers(0, 3, x_t.shape), rng.random(x_t.shape)
    u = jnp.asarray(np.choose(which, [*ends, drawn]), jnp.float32)
    one_way, another = (
        u < posterior(x_t, jnp.asarray(rng.random((200, 1)), jnp.float32), t, s, schedule)
        for _ in range(2)
    )
    decided = ~np.asarray(undecided(u, x_t, t, s, schedule))
    np.testing.assert_array_equal(one_way[decided], another[decided])
    assert s or not decided.any()


def test_guidance_of_one_and_of_zero():
    conditional, null = conditions()
    doubled = pair(conditional, null)
    traced = jax.jit(lambda condition, scale=None: run(condition, scale))
    for scale, alone in ((1.0, conditional), (0.0, null)):
        np.testing.assert_array_equal(traced(doubled, scale), traced(alone))
    for scale in (-3.0, 0.5, 40.0, 1e4):
        p = traced(doubled, scale)
        assert np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()
    assert traced._cache_size() == 2


def test_correlated_bits_come_out_correlated():
    """The exact denoiser of two bits that are always equal; direct prediction draws coins.

    The published posterior takes P(x_0 | x_t) for a prior and so counts x_t twice: with any number
    of steps 0.87 of the pairs are equal (found by an independent simulation), not all.
    """
    total = 64
    schedule = make_schedule("linear", total)

    def exact(x_t, t, condition):
        # log-odds of x_0 = (1, 1) against (0, 0), summed over what the two noisy bits say
        kept = jnp.asarray(schedule.k)[t]
        odds = (2.0 * x_t - 1.0) * (jnp.log1p(kept) - jnp.log1p(-kept))
        return jnp.broadcast_to(odds.sum(-1, keepdims=True), x_t.shape)

    shape = (4000, 1, 2)
    draw = uniforms(1, shape)

    def shares(times):
        bits = draw(99) < denoise_bits(exact, jnp.zeros(shape), draw, schedule, times, target="z0")
        return float((bits[..., 0] == bits[..., 1]).mean()), float(bits.mean())

    equal, ones = shares(sampling_times(total, total))
    assert abs(equal - 0.87) < 0.03 and abs(ones - 0.5) < 0.04
    equal, ones = shares((total,))
    assert abs(equal - 0.5) < 0.04 and abs(ones - 0.5) < 0.04


def test_a_single_time_is_direct_prediction():
    conditional, _ = conditions()
    once = make_schedule("linear", 1)
    p = denoise_bits(
        lambda x_t, t, c: c, conditional, uniforms(), once, sampling_times(1, 100), target="direct"
    )
    np.testing.assert_allclose(p, jax.nn.sigmoid(conditional), atol=1e-6)


@pytest.mark.parametrize("target", ["flip", "z0"])
def test_an_untrained_network_gives_coins(target):
    model = Denoiser(4, 8, 1)
    condition = jnp.ones((1, 1, 6))
    inputs = jnp.zeros((1, 1, 4)), jnp.zeros((1, 1), jnp.int32), condition
    variables = jax.jit(model.init)(jax.random.key(0), *inputs)

    def denoise(x_t, t, condition):
        return jax.jit(model.apply)(variables, x_t, t - 1, condition)

    p = predict_bits(denoise, jnp.ones((1, 1, 4)), jnp.asarray(3), condition, target=target)
    np.testing.assert_array_equal(p, 0.5)


def test_an_unknown_target_is_named():
    with pytest.raises(UserError, match="target='xor' is not known"):
        run(conditions()[0], target="xor")
