"""Layers that mix the tokens of a sequence, by name, so that one block serves them all.

A mixer is a module made from `dropout`, `dtype` and what else it takes of `heads` and the options
of `make`, and called as

    mixer(u, mask, rope, deterministic) -> [batch, length, width]

    u              [batch, length, width]
    mask           bool [batch, length], True = a token, False = padding; None: no padding
    rope           table of rotations [length, head_dim / 2, 2], or None; a mixer that sees order by
                   itself ignores it
    deterministic  switches dropout off

What stands in the padding has no influence on the tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from bigr_jax.errors import one_of
from bigr_jax.nn.attention import Attention
from bigr_jax.nn.hydra import Hydra
from bigr_jax.nn.mixers.directions import Both, Causal
from bigr_jax.nn.mixers.matrices import (
    Cauchy,
    Dense,
    Fourier,
    LowRank,
    Softmax,
    Toeplitz,
    Vandermonde,
)
from bigr_jax.nn.mixers.others import FNet, LinearAttention
from bigr_jax.nn.mixers.quasiseparable import Quasiseparable
from bigr_jax.nn.mixers.routing import Routing

# Each learned as it is, "NAME_di" (data-independent), or made of the tokens, "NAME_dd".
_MATRICES: dict[str, type[nn.Module]] = {
    "toeplitz": Toeplitz,
    "vandermonde": Vandermonde,
    "cauchy": Cauchy,
    "low_rank": LowRank,
    "attention": Softmax,
    "quasiseparable": Quasiseparable,
}
MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": Attention,
    "causal_attention": functools.partial(Attention, causal=True),
    "hydra": Hydra,
    "causal": Causal,
    "add": Both,
    "mult": functools.partial(Both, join="mult"),
    "concat": functools.partial(Both, join="concat"),
    "add_diagonal": functools.partial(Both, skip=True),
    "add_shift": functools.partial(Hydra, skip=False),
    "linear_attention": LinearAttention,
    "fnet": FNet,
    "routing": Routing,
    "dense_di": Dense,
    "dft_di": Fourier,
    **{f"{name}_di": functools.partial(kind, learned=True) for name, kind in _MATRICES.items()},
    **{f"{name}_dd": kind for name, kind in _MATRICES.items()},
}
# Those through which a token sees none that come after it.
CAUSAL = frozenset({"causal_attention", "causal"})
# Settings that mixers have in common; what one of them has no use for it does not see.
OPTIONS = frozenset(
    {
        "head_dim",
        "state",
        "groups",
        "expand",
        "conv",
        "chunk",
        "form",
        "length",
        "qk_dim",
        "kernel_init",
        "grid",
        "regions",
        "topk",
        "local",
    }
)


def make(
    mixer: str, *, heads: int, dropout: float, dtype: DTypeLike, name: str, **options: Any
) -> nn.Module:
    """Returns a new module of the kind `mixer`.

    heads    of attention and its like; the others have heads of `head_dim` channels
    options  of OPTIONS, see the modules' attributes; a mixer gets those that it has, so that one
             config serves them all. `length` is that of the longest sequence, `grid` the
             (height, width) of the map that its last tokens are
    Raises UserError for an unknown mixer, ValueError for an option that is none of OPTIONS.
    """
    if mixer not in MIXERS:
        raise one_of("mixer", mixer, MIXERS)
    if unknown := sorted(options.keys() - OPTIONS):
        raise ValueError(f"options {unknown} of no mixer; legal: {', '.join(sorted(OPTIONS))}")
    kind = MIXERS[mixer]
    made = kind.func if isinstance(kind, functools.partial) else kind
    known = {field.name for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    fitting = {key: value for key, value in (options | {"heads": heads}).items() if key in known}
    return kind(dropout=dropout, dtype=dtype, name=name, **fitting)
