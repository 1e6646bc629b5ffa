"""Bits per image against the chain rule, summed by hand over every order and every time."""

from __future__ import annotations

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.metrics.code_length import code_length
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import make_schedule

NET = BiGR(
    depth=1, width=8, heads=1, bits=2, grid=(1, 3), num_classes=2, head_width=4, head_blocks=1,
    ffn_hidden=8, target="direct",
)  # fmt: skip
ONCE = make_schedule("linear", 1)
CODES = np.array([[[1, 0], [0, 0], [1, 1]]], np.float32)
LABEL = np.array([1])
MANY = 4000


@pytest.fixture(scope="module")
def variables():
    t = jnp.ones((1, 3), jnp.int32)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), CODES, jnp.asarray(LABEL), t > 0, CODES, t)
    rng = np.random.default_rng(0)
    filled = nn.unbox(
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    )
    # A denoiser that reads no noise: its code length is then exact, not a mean over draws.
    filled["params"]["denoiser"]["bits_in"]["kernel"] *= 0.0
    return filled


@functools.partial(jax.jit, static_argnums=0)
def predict(net, variables, mask):
    t = jnp.ones((1, 3), jnp.int32)
    return net.apply(variables, jnp.asarray(CODES), jnp.asarray(LABEL), mask, CODES, t)


def told(net, variables, mask):
    """-log2 P of every token [3], with those under the mask not known."""
    logits = predict(net, variables, np.array([mask], bool))
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return -np.log2(np.where(CODES == 1, p, 1 - p)).sum(-1)[0]


def estimate(net, variables):
    run = jax.jit(lambda key, codes, labels: code_length(net, variables, key, codes, labels, ONCE))
    codes = np.repeat(CODES, MANY, axis=0)
    return np.asarray(run(jax.random.key(1), codes, np.repeat(LABEL, MANY)))


def test_masked_model_is_the_mean_over_all_orders(variables):
    total = []
    for order in itertools.permutations(range(3)):
        unknown, bits = [1, 1, 1], 0.0
        for token in order:
            bits += told(NET, variables, unknown)[token]
            unknown[token] = 0
        total.append(bits)
    found = estimate(NET, variables)
    assert abs(found.mean() - np.mean(total)) < 4 * found.std() / np.sqrt(MANY)


def test_causal_model_is_exact_by_the_chain_rule(variables):
    net = NET.clone(mixer="causal_attention", parent=None)
    found = estimate(net, variables)
    np.testing.assert_allclose(found, told(net, variables, [1, 1, 1]).sum(), rtol=1e-5)
