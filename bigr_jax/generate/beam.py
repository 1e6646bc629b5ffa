"""Beam search and diverse beam search, as one compiled loop of static shapes.

Source: Diverse Beam Search (arXiv 1610.02424), section 4 and algorithm 1. Plain beam search is the
search of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError, one_of
from bigr_jax.generate.decoder import Decoder

Array = jax.Array

# (tokens of earlier groups [batch, rows, length], which of them stand [batch, rows, length], step,
# last token [batch, beams], vocabulary) -> how alike every next token is to them, [batch, beams or
# 1, vocabulary]
Likeness = Callable[[Array, Array, Array, Array, int], Array]


class Search(NamedTuple):
    """What is searched for.

    length     tokens at most, the end included
    end        the token that ends a sequence
    beams      sequences in all, B; groups: G, among which they are divided evenly
    diversity  lambda, by which likeness to the groups before lowers a score
    likeness   name in LIKENESS
    """

    length: int
    end: int
    beams: int = 1
    groups: int = 1
    diversity: float = 0.5
    likeness: str = "hamming"


class Found(NamedTuple):
    """Sequences by group, the best of a group first; a place without one has -inf for its scores.

    tokens  int32 [batch, groups, beams / groups, length], `end` from the first on
    score   float32 [batch, groups, beams / groups]: sums of log p less the penalties, by which the
            search goes
    logp    float32, likewise: sums of log p alone
    """

    tokens: Array
    score: Array
    logp: Array


def hamming(tokens: Array, stands: Array, step: Array, last: Array, vocabulary: int) -> Array:
    """Returns how many beams of earlier groups chose a token at this step (section 4, Hamming)."""
    chosen = jnp.take(tokens, step, axis=2)
    there = jnp.take(stands, step, axis=2)
    return (jax.nn.one_hot(chosen, vocabulary) * there[..., None]).sum(1, keepdims=True)


def bigrams(tokens: Array, stands: Array, step: Array, last: Array, vocabulary: int) -> Array:
    """Returns how often an earlier group has this pair of tokens anywhere (section 4, n-grams)."""
    # pair: [batch, rows, length - 1, beams]
    pair = tokens[:, :, :-1, None] == last[:, None, None, :]
    there = jnp.where((step > 0) & stands[:, :, 1:, None], pair, False)
    following = jax.nn.one_hot(tokens[:, :, 1:], vocabulary)
    return jnp.einsum("brtw,brtv->bwv", there.astype(jnp.float32), following)


LIKENESS: Mapping[str, Likeness] = {"hamming": hamming, "bigrams": bigrams}


class _State(NamedTuple):
    """tokens int32 and alive bool [batch, groups, width, length], else [batch, groups, width]."""

    step: Array
    tokens: Array
    score: Array
    logp: Array
    found: Found
    memory: Any


def beam_search(decoder: Decoder, memory: Any, first: Array, search: Search) -> Found:
    """Returns the likeliest sequences that follow what a decoder has read.

    memory  what the decoder remembers of batch * beams rows, the beams of one text next to another
    first   int [batch * beams], the last token that was read, not yet in the memory

    In every step group after group takes the best of its beams' continuations, by the sum of log p
    less `diversity` times the likeness to the choices of the groups before it; the first group is a
    plain beam search. A beam that ends leaves the search, and is among its group's finds if its
    score is. A search stops where no beam can come among the finds any more. Beams that have not
    ended when `length` is reached are finds, too.
    Raises UserError where groups do not divide the beams evenly, for an unknown likeness, and where
    diversity is negative.
    """
    _check(search)
    groups, width = search.groups, search.beams // search.groups
    batch = first.shape[0] // search.beams
    shape = (batch, groups, width)
    # All beams of a group are equal at first: one is enough.
    score = jnp.broadcast_to(jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf), shape)
    none = jnp.full(shape, -jnp.inf)
    tokens = jnp.full((*shape, search.length), search.end, jnp.int32)
    start = _State(jnp.int32(0), tokens, score, score, Found(tokens, none, none), memory)

    def going(state: _State) -> Array:
        # Scores only fall.
        open_ = state.score.max(-1) > state.found.score.min(-1)
        return (state.step < search.length) & open_.any()

    def turn(state: _State) -> _State:
        before = jnp.maximum(state.step - 1, 0)
        last = jnp.take(state.tokens, before, axis=3).reshape(-1)
        last = jnp.where(state.step == 0, first, last)
        logp, memory = decoder.advance(state.memory, last)
        return _advanced(search, state._replace(memory=memory), logp, decoder)

    state = jax.lax.while_loop(going, turn, start)
    # What is in the search yet has not ended; where it stopped before, none of it can enter.
    return _merged(state.found, Found(state.tokens, state.score, state.logp))


def _check(search: Search) -> None:
    if search.beams < 1 or search.groups < 1 or search.beams % search.groups:
        raise UserError(
            f"{search.groups} groups do not divide {search.beams} beams evenly; both are 1 or more"
        )
    if search.likeness not in LIKENESS:
        raise one_of("likeness", search.likeness, LIKENESS)
    if search.diversity < 0:
        raise UserError(f"diversity={search.diversity} is negative; legal: 0 or more")


def _advanced(search: Search, state: _State, logp: Array, decoder: Decoder) -> _State:
    batch, groups, width, length = state.tokens.shape
    vocabulary = logp.shape[-1]
    logp = logp.reshape(batch, groups, width, vocabulary)
    before = jnp.take(state.tokens, jnp.maximum(state.step - 1, 0), axis=3)

    def choose(carry: tuple[Array, Array], group: Array) -> tuple[tuple[Array, Array], Any]:
        """Lets one group choose; carried are the sequences of all, and which tokens stand."""
        tokens, stands = carry
        rows = lambda x: x.reshape(batch, groups * width, length)  # noqa: E731
        earlier = rows(stands & (jnp.arange(groups) < group)[:, None, None])
        own = lambda x: jnp.take(x, group, axis=1)  # noqa: E731
        how = (rows(tokens), earlier, state.step, own(before), vocabulary)
        penalty = search.diversity * LIKENESS[search.likeness](*how)
        ahead = own(state.score)[..., None] + own(logp) - penalty
        score, place = jax.lax.top_k(ahead.reshape(batch, -1), width)
        parent, token = jnp.divmod(place, vocabulary)
        raw = own(state.logp)[..., None] + own(logp)
        raw = jnp.take_along_axis(raw.reshape(batch, -1), place, axis=1)
        mine = jnp.take_along_axis(own(tokens), parent[..., None], axis=1)
        mine = mine.at[:, :, state.step].set(token)
        there = jnp.take_along_axis(own(stands), parent[..., None], axis=1)
        there = there.at[:, :, state.step].set(score > -jnp.inf)
        put = lambda whole, part: whole.at[:, group].set(part)  # noqa: E731
        return (put(tokens, mine), put(stands, there)), (score, raw, parent)

    # A token stands where its sequence is in the search, and has been taken up to there.
    alive = jnp.broadcast_to((state.score > -jnp.inf)[..., None], state.tokens.shape)
    stands = alive & (jnp.arange(length) < state.step)
    (tokens, _), chosen = jax.lax.scan(choose, (state.tokens, stands), jnp.arange(groups))
    score, raw, parent = (jnp.moveaxis(x, 0, 1) for x in chosen)
    ended = jnp.take(tokens, state.step, axis=3) == search.end
    done = lambda x: jnp.where(ended, x, -jnp.inf)  # noqa: E731
    left = lambda x: jnp.where(ended, -jnp.inf, x)  # noqa: E731
    found = _merged(state.found, Found(tokens, done(score), done(raw)))
    memory = state.memory
    if width > 1:
        rows = jnp.arange(batch * groups).reshape(batch, groups, 1) * width + parent
        memory = decoder.select(memory, rows.reshape(-1))
    return _State(state.step + 1, tokens, left(score), left(raw), found, memory)


def _merged(one: Found, other: Found) -> Found:
    """Returns the best of two lists of as many, group by group; of equals, the first list's."""
    both: Any = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=2), one, other)
    score, place = jax.lax.top_k(both.score, one.score.shape[2])
    tokens = jnp.take_along_axis(both.tokens, place[..., None], axis=2)
    return Found(tokens, score, jnp.take_along_axis(both.logp, place, axis=2))
