"""The masked sampler against a float64 rewriting of it in NumPy, and what it promises."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.generate.draws import KeyDraws, RecordedDraws
from bigr_jax.generate.guidance import pair
from bigr_jax.generate.masked import (
    Known,
    MaskedSampling,
    Steps,
    confidence,
    remaining_counts,
    sample_masked,
)
from bigr_jax.ops.bernoulli import make_schedule, sampling_times

TOTAL = 6
SCHEDULE = make_schedule("linear", TOTAL)
SHAPE = BATCH, LENGTH, BITS = 2, 9, 3
RNG = np.random.default_rng(0)
MIX, PLACE = RNG.standard_normal((BITS, BITS)), RNG.standard_normal((LENGTH, BITS))
CLASSES = RNG.standard_normal((BATCH, 1, BITS))
NULL = RNG.standard_normal((1, 1, BITS))
# Written down, as programs without a generator of random numbers compile three times as fast.
DRAWS = RecordedDraws(
    jnp.asarray(RNG.random((12, 3, *SHAPE)), jnp.float32),
    jnp.asarray(RNG.gumbel(size=(12, BATCH, LENGTH)), jnp.float32),
    jnp.asarray(RNG.random((12, *SHAPE)), jnp.float32),
    jnp.asarray(RNG.random((BATCH, LENGTH)), jnp.float32),
)


def toy_hidden(xp, bits, mask, classes):
    """A vector [rows, N, K] per token that depends on all known tokens."""
    known = xp.where(mask[..., None], 0.0, 2.0 * bits - 1.0)
    return xp.tanh(known.mean(axis=1, keepdims=True) @ MIX + PLACE + classes)


def toy_denoise(x_t, t, hidden):
    return 2.0 * hidden + (2.0 * x_t - 1.0) * (0.8 - t / TOTAL)


def steps(guided, classes=CLASSES):
    rows = pair(jnp.asarray(classes), jnp.asarray(NULL)) if guided else jnp.asarray(classes)
    return Steps(lambda bits, mask: toy_hidden(jnp, bits, mask, rows), toy_denoise)


def generate(sampling, draws=DRAWS, **options):
    options = {"block": 2, **options}
    run = jax.jit(
        lambda: sample_masked(steps(sampling.guided), draws, SCHEDULE, sampling, **options)
    )
    return run()


def oracle(sampling, target, known_bits, known):
    """The algorithm in NumPy, image by image and token by token."""
    bits = np.where(known[..., None], known_bits, 0.0)
    iteration = np.where(known, -1, sampling.iterations)
    times = sampling_times(TOTAL, sampling.denoise_steps)
    permutation = np.asarray(DRAWS.order())
    for i in range(sampling.iterations):
        ratio = (i + 1) / sampling.iterations
        scale = sampling.cfg_scale
        if sampling.cfg_schedule == "linear":
            scale = 1 + (scale - 1) * ratio
        fade = {"down": 1 - ratio, "up": ratio, "constant": 1.0}[sampling.gumbel_schedule]
        p = chain(bits, iteration >= i, scale, i, times, target, sampling.temperature)
        scores = np.abs(p - 0.5).mean(-1) * 2
        scores = scores + fade * sampling.gumbel_temperature * np.asarray(DRAWS.gumbel(i))
        for b in range(BATCH):
            unknown = [n for n in range(LENGTH) if iteration[b, n] == sampling.iterations]
            total = LENGTH - known[b].sum()
            rate = np.cos(np.pi / 2 * ratio) if sampling.remaining == "cos" else 1 - ratio
            take = len(unknown) - int(np.floor(rate * total + 1e-9))
            order = {
                "entropy": -scores[b],
                "raster": np.arange(LENGTH),
                "random": -permutation[b],
            }[sampling.order]
            for n in sorted(unknown, key=lambda n, order=order: order[n])[:take]:
                u = np.asarray(DRAWS.bits(i))[b, n]
                bits[b, n] = p[b, n] > (0.5 if sampling.deterministic else u)
                iteration[b, n] = i
    return bits, iteration


def chain(bits, unknown, scale, i, times, target, temperature):
    """P(bit = 1) of all tokens after the denoising steps of one iteration."""
    branches = [toy_hidden(np, bits, unknown, c) for c in (CLASSES, NULL)]
    chance = 0.5
    for step, (t, s) in enumerate(itertools.pairwise((*times, 0))):
        x = (np.asarray(DRAWS.denoise(i, step)) < chance).astype(float)
        logits = [toy_denoise(x, t, h) / temperature for h in branches]
        p = 1 / (1 + np.exp(-(logits[1] + scale * (logits[0] - logits[1]))))
        p = np.where(x == 1, 1 - p, p) if target == "flip" else p
        a, r = (TOTAL - s) / TOTAL * p + s / TOTAL / 2, (TOTAL - t) / (TOTAL - s)
        one = r * x + (1 - r) / 2
        chance = a * one / (a * one + (1 - a) * (1 - one))
    return p


CASES = {
    "entropy": (MaskedSampling(4, 3), "flip", False),
    "entropy, known": (
        MaskedSampling(5, 2, 0.7, 3.0, "linear", 0.4, "up", remaining="linear"),
        "z0",
        True,
    ),
    "entropy, one branch": (MaskedSampling(3, 2, 1.0, 1.0, "linear", 0.0), "flip", True),
    "random": (
        MaskedSampling(4, 2, 1.0, 0.0, "constant", 0.5, "constant", "random"),
        "flip",
        False,
    ),
    "random, known": (
        MaskedSampling(3, 2, order="random", remaining="linear", deterministic=True),
        "flip",
        True,
    ),
    "raster": (MaskedSampling(6, 2, order="raster"), "z0", False),
    "raster, known": (MaskedSampling(12, 1, order="raster"), "flip", True),
}


@pytest.mark.parametrize("name", CASES)
def test_sampler_is_the_algorithm_compact_or_plain(name):
    sampling, target, inpaint = CASES[name]
    known_bits = np.random.default_rng(1).integers(0, 2, SHAPE).astype(np.float32)
    known = np.zeros(SHAPE[:2], bool)
    if inpaint:
        known[0, [0, 3, 4]], known[1, 1:] = True, True
    given = Known(jnp.asarray(known_bits), jnp.asarray(known)) if inpaint else None
    found = {
        compact: generate(sampling, target=target, known=given, compact=compact, block=4)
        for compact in (True, False)
    }
    bits, iteration = oracle(sampling, target, known_bits, known)
    np.testing.assert_array_equal(found[True].iteration, iteration)
    np.testing.assert_array_equal(found[True].bits, bits)
    jax.tree.map(np.testing.assert_array_equal, found[True], found[False])
    assert found[True].bits.dtype == jnp.float32


def test_the_transcoder_runs_on_fewer_tokens():
    def seen(order, **options):
        widths = []

        def denoise(x_t, t, hidden):
            jax.debug.callback(lambda: widths.append(x_t.shape[1]))
            return toy_denoise(x_t, t, hidden)

        traced = steps(True)._replace(denoise=denoise)
        sampling = MaskedSampling(6, 3, order=order)
        run = jax.jit(lambda: sample_masked(traced, DRAWS, SCHEDULE, sampling, **options))
        jax.block_until_ready(run())
        jax.effects_barrier()
        return widths

    # floor(9 cos(pi / 2 i / 6)) unknown before iteration i: 9 8 7 6 4 2, at most 2 drawn in one;
    # the last of the steps asks for all of them, the others for those that are undecided.
    widths = seen("entropy", block=1)
    assert set(widths) == {1} and 36 <= len(widths) < 3 * 36
    assert seen("entropy", compact=False) == seen("raster", compact=False) == [9] * 18
    for order in ("raster", "random"):
        widths = seen(order)
        assert set(widths) == {2} and 6 <= len(widths) <= 18


@pytest.fixture(scope="module")
def inpaint():
    sampling = MaskedSampling(4, 2)

    def run(bits, mask):
        known = Known(bits, mask)
        return sample_masked(steps(True), DRAWS, SCHEDULE, sampling, known=known, block=2)

    return jax.jit(run)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, LENGTH), st.integers(0, LENGTH), st.integers(0, 2**31))
def test_known_tokens_are_never_touched(inpaint, first, second, seed):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, SHAPE).astype(np.float32)
    rank = rng.permuted(np.tile(np.arange(LENGTH), (BATCH, 1)), axis=1)
    known = rank < np.array([[first], [second]])
    found = inpaint(bits, known)
    np.testing.assert_array_equal(found.bits[known], bits[known])
    np.testing.assert_array_equal(found.iteration == -1, known)
    assert set(np.unique(found.bits)) <= {0.0, 1.0}
    counts = remaining_counts("cos", 4, LENGTH)
    for b, unknown in enumerate((LENGTH - first, LENGTH - second)):
        drawn = np.bincount(np.asarray(found.iteration[b])[~known[b]], minlength=4)
        np.testing.assert_array_equal(drawn, -np.diff(counts[:, unknown]))
    assert inpaint._cache_size() == 1


def test_what_lies_under_the_mask_does_not_matter(inpaint):
    bits = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.float32)
    known = np.arange(LENGTH) % 2 * np.ones((BATCH, 1)) > 0
    garbage = np.where(known[..., None], bits, 5.0)
    jax.tree.map(np.testing.assert_array_equal, inpaint(bits, known), inpaint(garbage, known))


def test_one_program_for_all_keys():
    traces = []
    sampling = MaskedSampling(3, 2)

    def run(key, compact):
        traces.append(key)
        draws = KeyDraws(key, SHAPE)
        return sample_masked(steps(True), draws, SCHEDULE, sampling, compact=compact, block=2)

    jitted = jax.jit(run, static_argnums=1)
    first, second, again = (jitted(jax.random.key(seed), True) for seed in (7, 8, 7))
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.bits, second.bits)
    jax.tree.map(np.testing.assert_array_equal, first, jitted(jax.random.key(7), False))


def test_guidance_of_one_and_of_zero():
    sampling = MaskedSampling(3, 2)

    def alone(classes):
        one = steps(False, classes)
        plain = dataclasses.replace(sampling, cfg_scale=1.0)
        return jax.jit(lambda: sample_masked(one, DRAWS, SCHEDULE, plain, block=2))()

    # A scale of 1 asks for one branch only; 0 gives what the null class alone gives.
    assert not dataclasses.replace(sampling, cfg_scale=1.0).guided
    null = np.broadcast_to(NULL, CLASSES.shape)
    zero = generate(dataclasses.replace(sampling, cfg_scale=0.0))
    jax.tree.map(np.testing.assert_array_equal, zero, alone(null))
    conditional = alone(CLASSES)
    assert not np.array_equal(conditional.bits, zero.bits)
    nearly = generate(dataclasses.replace(sampling, cfg_scale=1.0 + 1e-6))
    jax.tree.map(np.testing.assert_array_equal, nearly, conditional)


@pytest.mark.parametrize("order", ["entropy", "random", "raster"])
def test_a_single_token(order):
    sampling = MaskedSampling(3, 2, cfg_scale=1.0, order=order)
    one = Steps(lambda bits, mask: jnp.ones((1, 1, 2)) * 50.0, lambda x_t, t, hidden: hidden)
    draws = KeyDraws(jax.random.key(0), (1, 1, 2))
    found = sample_masked(one, draws, SCHEDULE, sampling, target="z0", block=1)
    np.testing.assert_array_equal(found.bits, np.ones((1, 1, 2)))
    np.testing.assert_array_equal(found.iteration, [[0]])


def test_orders():
    raster = generate(MaskedSampling(4, 1, order="raster")).iteration
    assert (np.diff(raster, axis=1) >= 0).all()
    random = np.asarray(generate(MaskedSampling(4, 1, order="random")).iteration)
    rank = np.argsort(-np.asarray(DRAWS.order()), axis=1)
    assert (np.diff(np.take_along_axis(random, rank, axis=1), axis=1) >= 0).all()
    assert not np.array_equal(random[0], random[1])
    for found in (raster, random):
        drawn = -np.diff(remaining_counts("cos", 4, LENGTH)[:, LENGTH])
        np.testing.assert_array_equal(np.bincount(np.asarray(found)[0], minlength=4), drawn)


def test_confidence_is_highest_at_the_ends():
    p = jnp.array([[0.5, 0.5], [0.0, 1.0], [0.25, 1.0]])
    np.testing.assert_allclose(confidence(p), [0.0, 1.0, 0.75])


def test_counts_of_the_published_setting():
    drawn = -np.diff(remaining_counts("cos", 20, 256)[:, 256])
    assert drawn.tolist() == [
        1, 3, 4, 5, 7, 8, 10, 11, 13, 13, 15, 16, 17, 17, 19, 18, 20, 19, 20, 20
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["cos", "linear"]), st.integers(1, 40), st.integers(1, 300))
def test_counts_sum_to_all_unknown_tokens(name, iterations, length):
    counts = remaining_counts(name, iterations, length)
    assert counts.shape == (iterations + 1, length + 1)
    np.testing.assert_array_equal(counts[0], np.arange(length + 1))
    np.testing.assert_array_equal(counts[-1], 0)
    # More unknown tokens never leave fewer: the room for all is room for any number.
    assert (np.diff(counts, axis=0) <= 0).all() and (np.diff(counts, axis=1) >= 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "entrpy"}, r"sample.order='entrpy' is not known \(did you mean 'entropy'\?\)"),
        ({"remaining": "cosine"}, r"sample.remaining='cosine' .*legal: cos, linear"),
        ({"cfg_schedule": "liner"}, r"sample.cfg_schedule='liner' .*'linear'"),
        ({"gumbel_schedule": "dwn"}, r"sample.gumbel_schedule='dwn' .*'down'"),
        ({"iterations": 0}, "sample.iterations=0: legal: 1 and more"),
        ({"denoise_steps": -1}, "sample.denoise_steps=-1: legal: 1 and more"),
        ({"temperature": 0.0}, "sample.temperature=0.0: legal: more than 0"),
        ({"gumbel_temperature": -0.1}, "sample.gumbel_temperature=-0.1: legal: 0 and more"),
        ({"cfg_scale": float("nan")}, "sample.cfg_scale=nan: legal: a finite number"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        MaskedSampling(**fields)


def test_arrays_of_the_wrong_shape_are_named():
    sampling = MaskedSampling(2, 1)
    lone = Steps(lambda bits, mask: jnp.zeros(SHAPE), toy_denoise)
    with pytest.raises(
        ValueError, match=r"hidden vectors \(2, 9, 3\) for rows and tokens \(4, 9\)"
    ):
        sample_masked(lone, DRAWS, SCHEDULE, sampling)
    wrong = Known(jnp.zeros(SHAPE), jnp.zeros((BATCH, 4), bool))
    with pytest.raises(ValueError, match=r"mask \(2, 4\)"):
        sample_masked(steps(True), DRAWS, SCHEDULE, sampling, known=wrong)
