"""Drawing texts token by token, as one compiled loop of static shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError
from bigr_jax.generate.decoder import Decoder

Array = jax.Array


class Sampling(NamedTuple):
    """How texts are drawn.

    length       tokens at most, the end included
    end          the token that ends a sequence
    temperature  divides log p; 0 takes the likeliest
    top_k        only so many of the likeliest tokens are drawn; 0: all
    top_p        only the fewest tokens whose probabilities sum up to it are drawn; 1: all
    """

    length: int
    end: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def warped(logp: Array, sampling: Sampling) -> Array:
    """Returns log p of what is drawn, float32 as logp [..., vocabulary]: temperature, then the
    largest, then nucleus sampling (arXiv 1904.09751, section 3.1).
    """
    logp = nn.log_softmax(logp.astype(jnp.float32) / sampling.temperature)
    if 0 < sampling.top_k < logp.shape[-1]:
        least = jax.lax.top_k(logp, sampling.top_k)[0][..., -1:]
        logp = nn.log_softmax(jnp.where(logp >= least, logp, -jnp.inf))
    if sampling.top_p < 1:
        order = jnp.argsort(-logp, axis=-1)
        p = jnp.exp(jnp.take_along_axis(logp, order, axis=-1))
        # A token stays while those before it do not reach the sum: at least one does.
        stays = jnp.cumsum(p, axis=-1) - p < sampling.top_p
        stays = jnp.take_along_axis(stays, jnp.argsort(order, axis=-1), axis=-1)
        logp = nn.log_softmax(jnp.where(stays, logp, -jnp.inf))
    return logp


def sample(
    decoder: Decoder, memory: Any, first: Array, key: Array, sampling: Sampling
) -> tuple[Array, Array]:
    """Returns tokens int32 [N, length], `end` from the first on, and their log p, float32 [N],
    which is the model's own, whatever they were drawn by.

    memory, first: as `generate.beam.beam_search` takes them. Raises UserError where a setting of
    `sampling` is out of its range.
    """
    if sampling.temperature < 0 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        raise UserError(
            f"temperature={sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}; "
            "legal: 0 or more, 0 or more, above 0 up to 1"
        )
    count = first.shape[0]
    tokens = jnp.full((count, sampling.length), sampling.end, jnp.int32)

    def going(state: tuple[Array, ...]) -> Array:
        step, _, _, alive, *_ = state
        return (step < sampling.length) & alive.any()

    def turn(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, tokens, total, alive, last, memory = state
        logp, memory = decoder.advance(memory, last)
        if sampling.temperature:
            now = jax.random.fold_in(key, step)
            drawn = jax.random.categorical(now, warped(logp, sampling), axis=-1)
        else:
            drawn = logp.argmax(-1)
        drawn = jnp.where(alive, drawn, sampling.end).astype(jnp.int32)
        gained = jnp.take_along_axis(logp, drawn[:, None], axis=-1)[:, 0]
        total = total + jnp.where(alive, gained, 0.0)
        tokens = tokens.at[:, step].set(drawn)
        return step + 1, tokens, total, alive & (drawn != sampling.end), drawn, memory

    start = (jnp.int32(0), tokens, jnp.zeros(count), jnp.ones(count, bool), first, memory)
    _, tokens, total, *_ = jax.lax.while_loop(going, turn, start)
    return tokens, total
