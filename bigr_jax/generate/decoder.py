"""What the decoders of text see of a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.models.decoder_lm import DecoderLM
from bigr_jax.nn.cached_attention import Cache

Array = jax.Array


class Decoder(NamedTuple):
    """A language model as a search sees it; its memory is of N rows, one for each sequence.

    advance  (memory, token int [N]) -> (log p of the next token, float32 [N, vocabulary], memory)
    select   (memory, rows int [N]) -> the memory with those rows in place of what was there
    """

    advance: Callable[[Any, Array], tuple[Array, Any]]
    select: Callable[[Any, Array], Any]


class Memory(NamedTuple):
    """What a `DecoderLM` remembers: its cache, and how many tokens are in it, int [N]."""

    cache: Cache
    length: Array


def language_model(net: DecoderLM, variables: Any) -> Decoder:
    """Returns the decoder of a trained network; its memory is a `Memory`."""

    def advance(memory: Memory, token: Array) -> tuple[Array, Memory]:
        given = (token[:, None], memory.cache, memory.length)
        found: Any = net.apply(variables, *given, method="extend")
        return nn.log_softmax(found[0][:, 0]), Memory(found[1], memory.length + 1)

    def select(memory: Memory, rows: Array) -> Memory:
        cache = Cache(*(jnp.take(part, rows, axis=1) for part in memory.cache))
        return Memory(cache, jnp.take(memory.length, rows))

    return Decoder(advance, select)


def read(
    net: DecoderLM, variables: Any, prompts: Array, lengths: Array, more: int, copies: int = 1
) -> tuple[Memory, Array]:
    """Returns the memory of prompts, all but the last token of each, and that token, int [N].

    prompts: int [batch, longest], filled up to the right; lengths: int [batch], from 1 on; more:
    tokens that may follow; copies: N = batch * copies rows, those of one prompt next to another.
    """
    batch, longest = prompts.shape
    cache = net.empty_cache(batch, longest + more)
    nothing = jnp.zeros(batch, jnp.int32)
    found: Any = net.apply(variables, prompts, cache, nothing, method="extend")
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    # The last is read again by the first step; what the padding left beyond is overwritten.
    wide = Cache(*(jnp.repeat(part, copies, axis=1) for part in found[1]))
    return Memory(wide, jnp.repeat(lengths - 1, copies)), jnp.repeat(last, copies)
