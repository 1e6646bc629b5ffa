"""Hyper-parameters that are learnt: their ranges, a value for every example, and what acts by it.

Source: MacKay et al., Self-Tuning Networks, arXiv 1903.03088, sections 3.3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError

Array = jax.Array


class Hyper(NamedTuple):
    """One hyper-parameter, in [low, high].

    start     where it begins, within the range
    discrete  whether it is a whole number: the largest not above; nothing is differentiated by it
    """

    name: str
    low: float
    high: float
    start: float
    discrete: bool = False


class HyperSet(NamedTuple):
    """Hyper-parameters by name, and their unconstrained form, a vector [..., n].

    A value is low + (high - low) sigmoid(h).
    """

    entries: tuple[Hyper, ...]

    @classmethod
    def of(cls, entries: Sequence[Sequence[float | str | bool]], key: str) -> HyperSet:
        """Returns the set of a config's entries, (name, low, high, start[, discrete]).

        Raises UserError, naming the key, for a range that is empty, a start outside of it and a
        name that stands twice.
        """
        found = []
        for entry in entries:
            if len(entry) not in (4, 5):
                raise UserError(f"{key}: {entry} is not (name, low, high, start[, discrete])")
            name, low, high, start, *rest = entry
            one = Hyper(str(name), float(low), float(high), float(start), bool(rest and rest[0]))
            if not one.low < one.start < one.high:
                raise UserError(
                    f"{key}: {one.name} starts at {one.start:g}; legal: between {one.low:g} and "
                    f"{one.high:g}, which a sigmoid never reaches"
                )
            found.append(one)
        names = [one.name for one in found]
        if len(set(names)) < len(names):
            raise UserError(f"{key}: a name stands twice in {', '.join(names)}")
        return cls(tuple(found))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the entries, in order."""
        return tuple(one.name for one in self.entries)

    def free(self) -> Array:
        """Returns the starts in unconstrained form, float32 [n]."""
        shares = [(one.start - one.low) / (one.high - one.low) for one in self.entries]
        return jnp.array([math.log(share / (1 - share)) for share in shares], jnp.float32)

    def values(self, h: Array) -> dict[str, Array]:
        """Returns {name: [...]} of h [..., n]: what dropout and augmentation act by.

        No gradient passes: a value is felt through the weights that answer to h, and in no other
        way.
        """
        # h: [..., n]
        shares, found = jax.lax.stop_gradient(jax.nn.sigmoid(h)), {}
        for place, one in enumerate(self.entries):
            value = one.low + (one.high - one.low) * shares[..., place]
            found[one.name] = jnp.floor(value) if one.discrete else value
        return found


def softplus_inverse(value: float) -> float:
    """Returns the number of which log(1 + exp(.)) is `value`, which is positive."""
    return value + math.log(-math.expm1(-value))


def perturbed(key: Array, center: Array, spread: Array, rows: int) -> Array:
    """Returns center + softplus(spread) * N(0, 1), float32 [rows, n], drawn for every row alone.

    center, spread  [n]; gradients pass to both
    """
    noise = jax.random.normal(key, (rows, *center.shape))
    return center + jax.nn.softplus(spread) * noise


def entropy(spread: Array) -> Array:
    """Returns that of the normal distribution of `perturbed`, in nats, a scalar."""
    each = jnp.log(jax.nn.softplus(spread)) + 0.5 * math.log(2 * math.pi * math.e)
    return each.sum()


def dropout(key: Array, x: Array, rate: Array) -> Array:
    """Returns x [batch, ...] with each number set to 0 at the rate of its row, [batch], and the
    others divided by 1 - rate, so that the mean stays.

    No gradient passes to the rate, below 1.
    """
    # x: [batch, ...]
    rate = jax.lax.stop_gradient(rate).reshape(-1, *[1] * (x.ndim - 1))
    kept = jax.random.uniform(key, x.shape) >= rate
    return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)
