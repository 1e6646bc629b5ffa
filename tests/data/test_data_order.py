"""The order of examples: a permutation per epoch, the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data import Order

lengths = st.integers(1, 60)
seeds = st.integers(0, 2**40)


@settings(max_examples=50, deadline=None)
@given(lengths, seeds, st.integers(0, 5))
def test_every_epoch_holds_each_example_once(length: int, seed: int, epoch: int) -> None:
    positions = np.arange(epoch * length, (epoch + 1) * length)
    indices = Order(length, seed).at(positions)
    np.testing.assert_array_equal(np.sort(indices), np.arange(length))


@settings(max_examples=50, deadline=None)
@given(lengths, seeds, st.lists(st.integers(0, 10_000), max_size=40))
def test_positions_may_come_in_any_order_and_any_grouping(
    length: int, seed: int, positions: list[int]
) -> None:
    together = Order(length, seed).at(np.asarray(positions, np.int64))
    order = Order(length, seed)
    alone = [int(order.at(np.asarray([position]))[0]) for position in positions]
    assert together.tolist() == alone


def test_epochs_and_seeds_differ() -> None:
    first, second = Order(100, 1).at(np.arange(200)).reshape(2, 100)
    other = Order(100, 2).at(np.arange(100))
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


def test_the_order_is_that_of_the_raw_philox_stream() -> None:
    raw = np.random.Philox(key=np.asarray([7, 3], np.uint64)).random_raw(11)
    expected = sorted(range(11), key=lambda index: raw[index])
    assert Order(11, 7).at(np.arange(33, 44)).tolist() == expected
    # Written down once: a run resumed years later must go on in the same order.
    epochs = [[0, 2, 1, 5, 4, 3, 6, 7], [5, 3, 7, 2, 4, 1, 0, 6]]
    assert Order(8, 0).at(np.arange(16)).reshape(2, 8).tolist() == epochs


def test_an_empty_order_is_refused() -> None:
    with pytest.raises(ValueError, match="length is 0"):
        Order(0, 0)
