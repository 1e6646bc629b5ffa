"""Lengths of training in any unit, resolved to steps in one place."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from bigr_jax.errors import UserError

LEGAL = "'3000 steps', '40 epochs', '1_000_000 examples', '10%'"
FORM = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?)\s*(steps?|epochs?|examples?|%)\s*")


def steps(
    text: str | int, *, key: str, batch_size: int, examples: int, total: int | None = None
) -> int:
    """Returns a duration as a number of steps; a part of a step is rounded up.

    key         name of the setting, for messages
    batch_size  examples in a step, over all devices
    examples    examples in an epoch
    total       steps of the whole, which a percentage is of; None: there is no whole
    Raises UserError, naming the key, for anything that is not a duration.
    """
    if type(text) is int and text >= 0:
        return text
    match = FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        bare = re.fullmatch(r"\s*(\d[\d_]*)\s*", str(text))
        hint = f" (did you mean '{bare[1]} steps'?)" if bare else ""
        raise UserError(f"{key}={text!r} is not a duration{hint}; legal: {LEGAL}")
    amount, unit = Fraction(match[1].replace("_", "")), match[2].rstrip("s")
    if unit == "%":
        if total is None:
            raise UserError(f"{key}={text!r}: there is no whole to take a part of; legal: {LEGAL}")
        if amount > 100:
            raise UserError(f"{key}={text!r} is more than the whole; legal: 0% to 100%")
        return math.ceil(amount * total / 100)
    if unit == "epoch":
        return math.ceil(amount * examples / batch_size)
    if amount.denominator != 1:
        raise UserError(f"{key}={text!r} is not a whole number of {unit}s; legal: {LEGAL}")
    return int(amount) if unit == "step" else math.ceil(amount / batch_size)
