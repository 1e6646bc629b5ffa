"""Errors that a user can mend: one line, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave; the text names the key or tensor, what was given and what is
    legal.

    The command line prints the text alone and exits with status 2; in Python it is an ordinary
    exception.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'X'?)" for the known name closest to `name`, or "" when none is
    close.
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def one_of(key: str, given: object, legal: Iterable[object]) -> UserError:
    """Returns the error for a key whose value is not among the legal ones."""
    names = [str(item) for item in legal]
    hint = nearest(str(given), names)
    return UserError(f"{key}={given!r} is not known{hint}; legal: {', '.join(names)}")
