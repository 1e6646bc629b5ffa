"""Codes drawn class by class: guidance, the null class, and models that draw token by token."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.generate.codes import sample_codes
from bigr_jax.generate.draws import KeyDraws
from bigr_jax.generate.masked import Known, MaskedSampling
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import bit_probability, make_schedule

NET = BiGR(
    depth=1, width=8, heads=1, bits=3, grid=(2, 2), num_classes=2, head_width=4, head_blocks=1,
    ffn_hidden=8, target="direct",
)  # fmt: skip
CAUSAL = NET.clone(mixer="causal_attention", parent=None)
ONCE = make_schedule("linear", 1)
LABELS = jnp.array([0, 1, 2])
SAMPLING = MaskedSampling(iterations=2, denoise_steps=1, cfg_scale=1.0, gumbel_temperature=0.0)


@pytest.fixture(scope="module")
def variables():
    bits, t = jnp.zeros((1, 4, 3)), jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), bits, jnp.zeros((1,), int), t > 0, bits, t)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes)
    )


def drawn(net, variables, sampling, labels=LABELS, known=None):
    run = jax.jit(lambda v, key: sample_codes(net, v, key, labels, ONCE, sampling, known))
    return np.asarray(run(variables, jax.random.key(1)))


def test_a_causal_model_draws_one_token_after_the_other(variables):
    codes = drawn(CAUSAL, variables, SAMPLING)
    draws = KeyDraws(jax.random.key(1), (3, 4, 3))
    bits = np.zeros((3, 4, 3), np.float32)
    apply = jax.jit(lambda *a: CAUSAL.apply(variables, *a))
    for token in range(4):
        # The noise of a single time says nothing, but the denoiser reads it.
        noise = np.asarray(draws.denoise(token, 0) < 0.5, np.float32)
        t = np.ones((3, 4), np.int32)
        logits = apply(bits, LABELS, np.zeros((3, 4), bool), noise, t)
        p = np.asarray(bit_probability(logits, noise, "direct"))
        bits[:, token] = (np.asarray(draws.bits(token)) < p)[:, token]
    np.testing.assert_array_equal(codes, bits)
    other = dataclasses.replace(SAMPLING, order="random", iterations=7, remaining="cos")
    np.testing.assert_array_equal(codes, drawn(CAUSAL, variables, other))


def test_given_tokens_stay(variables):
    known = Known(jnp.ones((3, 4, 3)), jnp.array([[True, False, True, False]] * 3))
    codes = drawn(NET, variables, SAMPLING, known=known)
    assert (codes[:, ::2] == 1).all() and not (codes[:, 1::2] == 1).all()


def test_guidance_leaves_the_null_class_as_it_is(variables):
    guided = dataclasses.replace(SAMPLING, cfg_scale=3.0)
    plain, changed = drawn(NET, variables, SAMPLING), drawn(NET, variables, guided)
    np.testing.assert_array_equal(plain[2], changed[2])
    assert not np.array_equal(plain[:2], changed[:2])
