"""Regular expressions over parameter paths such as "encoder/layers/attention/kernel"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from bigr_jax.errors import UserError

_SHOWN = 5


def path_of(keys: Sequence[Any]) -> str:
    """Returns "a/b/c" for a key path of `jax.tree_util.tree_flatten_with_path`."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """Returns the path of every leaf, in the order of `jax.tree.leaves`, without linen's boxes."""
    return [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(nn.unbox(tree))]


def first_match(patterns: Sequence[str], names: Sequence[str], key: str) -> list[int | None]:
    """Returns, for every path, the index of the first pattern found in it (`re.search`), or None.

    `key` is the config key that holds the patterns. Raises UserError for a pattern that is no
    regular expression, and for one that is found in no path at all: it would silently do nothing.
    """
    compiled = [_compile(pattern, key) for pattern in patterns]
    for pattern in compiled:
        if not any(pattern.search(name) for name in names):
            raise UserError(
                f"{key}: {pattern.pattern!r} matches no parameter; there are {examples(names)}"
            )
    return [
        next((index for index, pattern in enumerate(compiled) if pattern.search(name)), None)
        for name in names
    ]


def examples(names: Sequence[str]) -> str:
    """Returns a few paths, evenly picked, for an error message."""
    picked = names[:: max(1, len(names) // _SHOWN)][:_SHOWN]
    rest = len(names) - len(picked)
    return ", ".join(picked) + (f" and {rest} more" if rest else "")


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
