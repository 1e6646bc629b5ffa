from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.generate.beam import Search, beam_search
from bigr_jax.generate.decoder import Decoder

VOCABULARY, STATES, END = 6, 31, 5


def table(seed, batch=1, likely_end=0.0):
    """Log p of the next token after every state of a small machine that reads tokens."""
    logits = np.random.default_rng(seed).normal(size=(batch, STATES, VOCABULARY)) * 1.5
    logits[..., END] += likely_end
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def follow(state, token):
    return (state * 5 + token * 3 + 1) % STATES


def machine(logp):
    """A memory row is (text, state): both must follow their beam."""

    def advance(memory, token):
        text, state = memory
        state = follow(state, token)
        return jnp.asarray(logp, jnp.float32)[text, state], (text, state)

    return Decoder(advance, lambda memory, rows: jax.tree.map(lambda x: x[rows], memory))


@functools.partial(jax.jit, static_argnums=1)
def searched(logp, search):
    batch = logp.shape[0]
    texts = jnp.repeat(jnp.arange(batch), search.beams)
    start = jnp.zeros(batch * search.beams, jnp.int32)
    return beam_search(machine(logp), (texts, start), start, search)


def lists(found, text=0):
    """[group][place] = (tokens up to the end, score, log p), without the empty places."""
    return [
        [
            (tuple(cut(tokens.tolist())), float(score), float(logp))
            for tokens, score, logp in zip(*group, strict=True)
            if score > -np.inf
        ]
        for group in zip(*(np.asarray(x)[text] for x in found), strict=True)
    ]


def cut(tokens):
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def lagged(logp, search):
    """The published schedule in float64: at time t group g takes its own step t - g, and so finds
    what the groups before it chose at that step already there.
    """
    groups, width = search.groups, search.beams // search.groups
    beams = [[((), 0.0, 0.0, int(follow(0, 0)))] for _ in range(groups)]
    finds = [[] for _ in range(groups)]
    chosen, histories = {}, {}
    for time in range(search.length + groups - 1):
        for group in range(groups):
            step = time - group
            if not 0 <= step < search.length:
                continue
            ahead = []
            for tokens, score, raw, state in beams[group]:
                for token in range(VOCABULARY):
                    alike = 0.0
                    for other in range(group):
                        if search.likeness == "hamming":
                            alike += chosen[other, step].count(token)
                        elif step:
                            pair = (tokens[-1], token)
                            for past in histories[other, step]:
                                alike += list(itertools.pairwise(past)).count(pair)
                    gain = logp[state, token]
                    ahead.append(
                        ((*tokens, token), score + gain - search.diversity * alike, raw + gain,
                         int(follow(state, token)))
                    )  # fmt: skip
            best = sorted(ahead, key=lambda x: -x[1])[:width]
            chosen[group, step] = [tokens[-1] for tokens, *_ in best]
            histories[group, step] = [tokens for tokens, *_ in best]
            last = step == search.length - 1
            finds[group] += [x[:3] for x in best if x[0][-1] == END or last]
            beams[group] = [x for x in best if x[0][-1] != END]
    return [sorted(found, key=lambda x: -x[1])[:width] for found in finds]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert [tokens for tokens, *_ in mine] == [tokens for tokens, *_ in theirs]
        np.testing.assert_allclose(
            [scores for _, *scores in mine], [scores for _, *scores in theirs], atol=1e-4
        )


SEARCHES = [
    Search(7, END, 4, 1, 0.5),
    Search(7, END, 4, 2, 0.5),
    Search(7, END, 6, 3, 1.3),
    Search(7, END, 4, 4, 0.7),
    Search(7, END, 6, 3, 0.9, "bigrams"),
    Search(1, END, 4, 2, 0.5),
    Search(7, END, 1, 1),
]


@pytest.mark.parametrize("search", SEARCHES)
def test_finds_are_those_of_the_published_schedule(search):
    for seed, likely_end in [(0, 0.0), (1, 1.5), (2, -2.0)]:
        logp = table(seed, 2, likely_end)
        found = searched(logp, search)
        for text in range(2):
            assert_same(lists(found, text), lagged(logp[text], search))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-2, 2))
def test_one_group_is_beam_search_whatever_the_diversity(seed, likely_end):
    logp = table(seed, 1, likely_end)
    plain, other = (searched(logp, Search(7, END, 4, 1, much)) for much in (0.0, 1.7))
    assert lists(plain) == lists(other)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_without_diversity_every_group_is_the_search_of_its_width(seed):
    logp = table(seed)
    alone = lists(searched(logp, Search(7, END, 2, 1, 0.0)))[0]
    groups = lists(searched(logp, Search(7, END, 6, 3, 0.0)))
    for group in groups:
        assert [x[0] for x in group] == [x[0] for x in alone]
        np.testing.assert_allclose([x[1:] for x in group], [x[1:] for x in alone], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_first_group_never_knows_of_the_others(seed):
    logp = table(seed)
    one, other = (lists(searched(logp, Search(7, END, 6, 3, much)))[0] for much in (0.0, 1.3))
    assert one == other


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_diversity_beyond_all_makes_first_tokens_differ(seed):
    found = searched(table(seed), Search(7, END, 6, 6, 1e9))
    first = [group[0][0][0] for group in lists(found)]
    assert len(set(first)) == 6


def test_a_wide_beam_finds_the_likeliest_sequence():
    logp = table(3, 1, 0.5)
    search = Search(3, END, VOCABULARY**2)

    def sequences(state, tokens, score):
        for token in range(VOCABULARY):
            total = score + logp[0, state, token]
            whole = (*tokens, token)
            if token == END or len(whole) == search.length:
                yield total, whole
            else:
                yield from sequences(int(follow(state, token)), whole, total)

    score, tokens = max(sequences(int(follow(0, 0)), (), 0.0))
    found = lists(searched(logp, search))[0][0]
    assert found[0] == tokens
    np.testing.assert_allclose(found[1], score, atol=1e-5)


def test_what_is_no_search_is_refused():
    logp = table(0)
    for search, said in [
        (Search(3, END, 4, 3), "3 groups do not divide 4 beams evenly"),
        (Search(3, END, 4, 2, likeness="cosine"), "likeness"),
        (Search(3, END, 4, 2, -1.0), "diversity=-1.0 is negative"),
    ]:
        with pytest.raises(UserError, match=said):
            searched(logp, search)
