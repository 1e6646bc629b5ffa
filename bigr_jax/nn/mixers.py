"""Layers that mix the tokens of a sequence, by name, so that one block serves them all.

A mixer is a module made from `heads`, `dropout` and `dtype`, and called as

    mixer(u, mask, rope, deterministic) -> [batch, length, width]

    u              [batch, length, width]
    mask           bool [batch, length], True = a token, False = padding; None: no padding
    rope           table of rotations [length, head_dim / 2, 2], or None; a mixer that sees order by
                   itself ignores it
    deterministic  switches dropout off
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from bigr_jax.errors import one_of
from bigr_jax.nn.attention import Attention
from bigr_jax.nn.hydra import Hydra


def _hydra(*, heads: int, **options: Any) -> nn.Module:
    # Its heads have 64 channels, as published; those of attention are given.
    del heads
    return Hydra(**options)


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": Attention,
    "causal_attention": functools.partial(Attention, causal=True),
    "hydra": _hydra,
}
# Those through which a token sees none that come after it.
CAUSAL = frozenset({"causal_attention"})


def make(mixer: str, *, heads: int, dropout: float, dtype: DTypeLike, name: str) -> nn.Module:
    """Returns a new module of the kind `mixer`; raises UserError for an unknown one."""
    if mixer not in MIXERS:
        raise one_of("mixer", mixer, MIXERS)
    return MIXERS[mixer](heads=heads, dropout=dropout, dtype=dtype, name=name)
