from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.generate.autoregressive import Sampling, sample, warped
from bigr_jax.generate.beam import Search, beam_search
from bigr_jax.generate.decoder import Decoder, language_model, read
from bigr_jax.models.decoder_lm import DecoderLM

VOCABULARY, END = 5, 4
LOGP = np.log(np.random.default_rng(0).dirichlet(np.ones(VOCABULARY), VOCABULARY))
# The next token depends on the last alone.
CHAIN = Decoder(
    lambda memory, token: (jnp.asarray(LOGP, jnp.float32)[token], memory),
    lambda memory, rows: memory,
)


@functools.partial(jax.jit, static_argnums=(1, 2))
def drawn(key, sampling, count):
    return sample(CHAIN, (), jnp.zeros(count, jnp.int32), key, sampling)


def test_tokens_come_as_often_as_they_are_likely():
    count = 40_000
    tokens, logp = drawn(jax.random.key(0), Sampling(3, END), count)
    shares = np.bincount(np.asarray(tokens[:, 0]), minlength=VOCABULARY) / count
    np.testing.assert_allclose(shares, np.exp(LOGP[0]), atol=4 * 0.5 / np.sqrt(count))
    for row, total in zip(np.asarray(tokens[:50]), np.asarray(logp), strict=False):
        wanted, last = 0.0, 0
        for token in row:
            wanted += LOGP[last, token]
            last = token
            if token == END:
                break
        assert total == pytest.approx(wanted, abs=1e-5)
    ended = np.cumsum(np.asarray(tokens) == END, axis=1) > 0
    assert (np.asarray(tokens)[ended] == END).all()


def test_temperature_0_takes_the_likeliest():
    tokens, _ = drawn(jax.random.key(0), Sampling(4, END, 0.0), 2)
    last = 0
    for token in np.asarray(tokens[0]):
        assert token == (END if last == END else LOGP[last].argmax())
        last = token
    np.testing.assert_array_equal(tokens[0], tokens[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 3), st.integers(0, VOCABULARY + 1), st.floats(0.05, 1))
def test_warping_is_that_of_float64(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=VOCABULARY)
    p = np.exp(logits / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if 0 < top_k < VOCABULARY:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    if np.abs(before - top_p).min() < 1e-4:
        return
    p[order[before >= top_p]] = 0
    p /= p.sum()
    found = np.exp(warped(jnp.asarray(logits), Sampling(1, END, temperature, top_k, top_p)))
    np.testing.assert_allclose(found, p, atol=1e-5)


def test_settings_out_of_range_are_refused():
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}):
        with pytest.raises(UserError, match="legal: 0 or more, 0 or more, above 0 up to 1"):
            sample(CHAIN, (), jnp.zeros(1, jnp.int32), jax.random.key(0), Sampling(2, END, **bad))


@pytest.fixture(scope="module")
def lm():
    net = DecoderLM(11, 8, 2, 2, hidden=12)
    start = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    return net, jax.tree.map(lambda leaf: leaf * 5, nn.meta.unbox(start))


def test_what_a_decoder_finds_has_the_networks_own_log_p(lm):
    net, variables = lm
    prompts = np.array([[3, 1, 4, 0, 0], [2, 7, 1, 8, 2]], np.int32)
    lengths = np.array([3, 5], np.int32)

    @jax.jit
    def searched(variables, prompts, lengths):
        memory, first = read(net, variables, prompts, lengths, 6, 4)
        return beam_search(language_model(net, variables), memory, first, Search(6, 10, 4, 2))

    @jax.jit
    def greedy(variables, prompts, lengths):
        memory, first = read(net, variables, prompts, lengths, 6)
        how = Sampling(6, 10, 0.0)
        return sample(language_model(net, variables), memory, first, jax.random.key(0), how)

    found = searched(variables, prompts, lengths)
    apply = jax.jit(net.apply)

    def own(text, tokens):
        tokens = tokens.tolist()
        tokens = tokens[: tokens.index(10) + 1] if 10 in tokens else tokens
        whole = np.zeros((1, 11), np.int32)
        line = [*prompts[text][: lengths[text]].tolist(), *tokens]
        whole[0, : len(line)] = line
        logp = nn.log_softmax(apply(variables, whole))[0]
        places = range(lengths[text] - 1, len(line) - 1)
        return float(sum(logp[place, line[place + 1]] for place in places))

    for text in range(2):
        for group in range(2):
            for place in range(2):
                wanted = own(text, np.asarray(found.tokens[text, group, place]))
                assert float(found.logp[text, group, place]) == pytest.approx(wanted, abs=1e-3)
    tokens, logp = greedy(variables, prompts, lengths)
    for text in range(2):
        assert float(logp[text]) == pytest.approx(own(text, np.asarray(tokens[text])), abs=1e-3)
