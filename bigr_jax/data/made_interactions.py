"""Sequences of items of a known law, for which the best guess can be computed.

Items are of kinds. The kind of the next item follows from the kinds of the last two, in most cases
by a rule of which one of them tells a part and both tell all; but now and then somebody takes any
item at all, which leaves that memory as it was. Nobody takes an item twice.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

KINDS, EACH = 5, 24
USERS, SHORT, LONG = 3000, 10, 20
# How often the rule holds, and how often any item is taken.
RULED, SKIPPED = 0.9, 0.1


class Law(NamedTuple):
    """How sequences come about.

    follows  float64 [kinds, kinds, kinds]: of the kinds of the last two items, the earlier first,
             the probability of the next one
    kinds    int [items], of each item
    weights  float64 [items], how likely an item is among those of its kind
    skipped  probability that any item is taken, each as likely
    """

    follows: np.ndarray
    kinds: np.ndarray
    weights: np.ndarray
    skipped: float


class Made(NamedTuple):
    """The law and what came of it: items, int [users, LONG], from 0, and how many of them count."""

    law: Law
    items: np.ndarray
    lengths: np.ndarray

    def events(self) -> tuple[list[str], list[str], np.ndarray]:
        """Returns users, names of items and times; an item is called by its place in the law."""
        rows, columns = np.nonzero(np.arange(LONG) < self.lengths[:, None])
        items = self.items[rows, columns]
        return [str(row) for row in rows], [str(item) for item in items], columns.astype(float)


@functools.cache
def made() -> Made:
    """Returns the one law and its sequences; a seed tells them."""
    # Of NumPy's generators, the one whose numbers are promised to stay the same.
    random = np.random.RandomState(0)
    ruled = np.eye(KINDS)[random.randint(0, KINDS, (KINDS, KINDS))]
    follows = RULED * ruled + (1 - RULED) / KINDS
    weights = np.tile(1 / np.arange(1.0, EACH + 1), KINDS)
    law = Law(follows, np.repeat(np.arange(KINDS), EACH), weights, SKIPPED)
    lengths = random.randint(SHORT, LONG + 1, USERS)
    return Made(law, _drawn(law, USERS, LONG, random), lengths)


def _drawn(law: Law, users: int, length: int, random: np.random.RandomState) -> np.ndarray:
    everybody = np.arange(users)
    earlier, later = random.randint(0, len(law.follows), (2, users))
    free = np.ones((users, len(law.kinds)))
    items = np.empty((users, length), np.int64)
    for place in range(length):
        kind = _choose(law.follows[earlier, later], random)
        any_item = random.random_sample(users) < law.skipped
        wanted = law.weights * (law.kinds == kind[:, None])
        item = _choose(np.where(any_item[:, None], 1.0, wanted) * free, random)
        earlier, later = (
            np.where(any_item, earlier, later),
            np.where(any_item, later, kind),
        )
        items[:, place], free[everybody, item] = item, 0.0
    return items


def _choose(weights: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Returns a place per row, as likely as its weight, which is 0 or more: int [rows]."""
    sums = weights.cumsum(axis=1)
    return (sums > random.random_sample(len(sums))[:, None] * sums[:, -1:]).argmax(axis=1)


def best_guess(law: Law, items: np.ndarray) -> np.ndarray:
    """Returns the probabilities of the next item, given all before it: no scorer ranks better.

    items: int [users, length], in the law's order, -1 where there is none; float64 [users, items].
    It weighs what the last two kinds may have been, since it does not see which items were any.
    """
    users, count = len(items), len(law.kinds)
    everybody, size = np.arange(users), len(law.follows)
    belief = np.full((users, size, size), 1 / size**2)
    free = np.ones((users, count))
    member = np.eye(size)[law.kinds]
    for item in items.T:
        there = item >= 0
        kind = law.kinds[item]
        among = (free * law.weights) @ member
        ruled = np.einsum("uxy,xyk->uyk", belief, law.follows) * member[item][:, None]
        ruled *= (law.weights[item] / among[everybody, kind])[:, None, None]
        found = (1 - law.skipped) * ruled + (law.skipped / free.sum(1))[:, None, None] * belief
        found /= found.sum((1, 2), keepdims=True)
        belief = np.where(there[:, None, None], found, belief)
        free[everybody[there], item[there]] = 0.0
    next_kind = np.einsum("uxy,xyk->uk", belief, law.follows)
    share = free * law.weights / ((free * law.weights) @ member)[:, law.kinds]
    ruled = next_kind[:, law.kinds] * share
    return (1 - law.skipped) * ruled + law.skipped * free / free.sum(1, keepdims=True)
