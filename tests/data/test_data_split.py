"""The held-out part: stratified, the same everywhere, never a whole class."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data.split import held_out


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.randoms())
def test_it_does_not_depend_on_the_listing_order(labels: list[int], random) -> None:
    names = [f"name{position}" for position in range(len(labels))]
    mask = held_out(np.asarray(labels), names, 0.1)
    order = list(range(len(labels)))
    random.shuffle(order)
    shuffled = held_out(np.asarray(labels)[order], [names[place] for place in order], 0.1)
    np.testing.assert_array_equal(shuffled, mask[order])


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 0), (2, 1), (9, 1), (10, 1), (30, 3), (500, 50)]
)
def test_a_tenth_of_each_class_and_at_least_one_of_two(count: int, expected: int) -> None:
    labels = np.repeat([3, 0], [count, 20])
    mask = held_out(labels, [str(position) for position in range(count + 20)], 0.1)
    assert (mask[:count].sum(), mask[count:].sum()) == (expected, 2)


def test_the_lowest_hashes_are_held_out() -> None:
    names = [f"cat/{number}.png" for number in range(40)]
    mask = held_out(np.zeros(40, int), names, 0.1)
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert {name for name, test in zip(names, mask, strict=True) if test} == set(ranked[:4])
