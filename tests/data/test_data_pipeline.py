"""Batches: independent of hosts, threads, prefetch and restarts; no example lost or doubled."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data import Info, Order, Share, eval_batches, train_batches
from bigr_jax.data.pipeline import Batches, HostBatch
from bigr_jax.data.source import LazySource
from bigr_jax.errors import UserError

LENGTH, BATCH = 30, 8


def take(batches: Batches, count: int) -> list[HostBatch]:
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def whole(make: Callable[[int], Batches], hosts: int, count: int) -> list[HostBatch]:
    """The global batches: the hosts' rows one below the other."""
    parts = [take(make(host), count) for host in range(hosts)]
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def equal(left: list[HostBatch], right: list[HostBatch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def shown(batch: HostBatch) -> np.ndarray:
    high, low = batch["image"].reshape(-1, 2).astype(int).T
    return high * 256 + low


@pytest.mark.parametrize("lazy", [False, True])
def test_a_train_batch_is_what_the_order_says(numbered: Callable, lazy: bool) -> None:
    batches = take(train_batches(numbered(LENGTH, lazy), BATCH, seed=5), 8)
    for step, batch in enumerate(batches):
        expected = Order(LENGTH, 5).at(np.arange(step * BATCH, (step + 1) * BATCH))
        np.testing.assert_array_equal(batch["index"], expected)
        np.testing.assert_array_equal(shown(batch), expected)
        np.testing.assert_array_equal(batch["label"], expected % 3)
        np.testing.assert_array_equal(batch["mask"], np.ones(BATCH))
        assert batch["image"].shape == (BATCH, 1, 2, 1)
        kinds = {name: value.dtype.name for name, value in batch.items()}
        assert kinds == {"image": "uint8", "label": "int32", "index": "int32", "mask": "float32"}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("prefetch", "threads"), [(0, 1), (1, 4), (8, 2)])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_threads_and_prefetch_change_nothing(
    numbered: Callable, hosts: int, prefetch: int, threads: int, lazy: bool
) -> None:
    source = numbered(LENGTH, lazy)

    def host(index: int) -> Batches:
        return train_batches(source, BATCH, 3, 2, Share((index,), hosts), prefetch, threads)

    plain = take(train_batches(numbered(LENGTH), BATCH, 3, prefetch=0), 8)[2:]
    equal(whole(host, hosts, 6), plain)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.booleans()
)
def test_a_restart_goes_on_even_with_other_hosts(
    numbered: Callable, step: int, before: int, after: int, lazy: bool
) -> None:
    source = numbered(LENGTH, lazy)

    def of(hosts: int, start: int, count: int) -> list[HostBatch]:
        def make(host: int) -> Batches:
            return train_batches(source, BATCH, 1, start, Share((host,), hosts))

        return whole(make, hosts, count)

    unbroken, resumed = of(before, step, 3), of(after, step + 1, 2)
    equal(unbroken[1:], resumed)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 2, 3]), st.integers(0, 99))
def test_each_epoch_has_every_example_once(
    numbered: Callable, length: int, rows: int, hosts: int, seed: int
) -> None:
    batch, epochs = rows * hosts, 3
    steps = -(-epochs * length // batch)
    source = numbered(length)
    batches = whole(
        lambda host: train_batches(source, batch, seed, 0, Share((host,), hosts), 0), hosts, steps
    )
    seen = np.concatenate([one["index"] for one in batches])[: epochs * length]
    np.testing.assert_array_equal(
        np.sort(seen.reshape(epochs, length)), np.tile(np.arange(length), (epochs, 1))
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 2, 3]), st.booleans())
def test_evaluation_has_every_example_once_and_padding_without_weight(
    numbered: Callable, length: int, rows: int, hosts: int, lazy: bool
) -> None:
    batch, source = rows * hosts, numbered(length, lazy)
    batches = whole(lambda host: eval_batches(source, batch, Share((host,), hosts)), hosts, 10**6)
    assert len(batches) == -(-length // batch)
    index = np.concatenate([one["index"] for one in batches])
    mask = np.concatenate([one["mask"] for one in batches])
    np.testing.assert_array_equal(index[:length], np.arange(length))
    np.testing.assert_array_equal(index[length:], length - 1)
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < length)
    np.testing.assert_array_equal(np.concatenate([shown(one) for one in batches]), index)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 7), st.integers(1, 4), st.sampled_from([1, 2, 3]),
    st.integers(0, 50), st.booleans(),
)  # fmt: skip
def test_examples_repeat_in_a_row_on_all_hosts_and_after_a_restart(
    numbered: Callable, length: int, rows: int, repeat: int, hosts: int, step: int, lazy: bool
) -> None:
    source, batch = numbered(length, lazy), rows * hosts
    batches = whole(
        lambda host: train_batches(source, batch, 4, step, Share((host,), hosts), 1, 2, repeat),
        hosts,
        3,
    )
    positions = np.arange(step * batch, (step + 3) * batch)
    expected = Order(length, 4).at(positions // repeat)
    np.testing.assert_array_equal(np.concatenate([one["index"] for one in batches]), expected)
    np.testing.assert_array_equal(np.concatenate([shown(one) for one in batches]), expected)


def test_repeated_examples_are_of_different_copies() -> None:
    (batch,) = take(train_batches(Copied(10), 60, 7, repeat=3), 1)
    pairs = batch["codes"].astype(int)
    # Six times each example, in turn of three copies.
    assert {tuple(pair) for pair in pairs[:30].tolist()} == {
        (i, c) for i in range(10) for c in range(3)
    }
    np.testing.assert_array_equal(np.bincount(pairs[:, 0] * 3 + pairs[:, 1]), 2)
    assert all(len(set(three)) == 3 for three in pairs[:, 1].reshape(-1, 3).tolist())


class Copied:
    """Three copies of every example; index i + c length shows example i and copy c."""

    copies = 3
    info = Info("copied", 1, ("a",), (1, 1, 1), "none", "generated")

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        copy, example = np.divmod(indices, self.length)
        return {"codes": np.stack([example, copy], -1).astype(np.uint8), "label": example}


@pytest.mark.parametrize("hosts", [1, 2])
def test_every_copy_is_seen_once_in_as_many_epochs(hosts: int) -> None:
    source, batch, epochs = Copied(10), 4, 6
    batches = whole(
        lambda host: train_batches(source, batch, 7, 0, Share((host,), hosts)),
        hosts,
        epochs * 10 // batch,
    )
    codes = np.concatenate([one["codes"] for one in batches]).astype(int)
    index = np.concatenate([one["index"] for one in batches])
    np.testing.assert_array_equal(codes[:, 0], index)
    np.testing.assert_array_equal(index, Order(10, 7).at(np.arange(epochs * 10)))
    by_epoch = codes.reshape(epochs, 10, 2)
    for first in (0, 3):
        seen = by_epoch[first : first + 3].reshape(-1, 2)
        assert len({tuple(pair) for pair in seen.tolist()}) == 30
    assert all(len(set(epoch[:, 1].tolist())) == 3 for epoch in by_epoch)
    # A measurement reads the first copy.
    measured = take(eval_batches(source, batch), 10)
    assert not any(one["codes"][:, 1].any() for one in measured)


def test_a_batch_may_hold_several_epochs(numbered: Callable) -> None:
    (batch,) = take(train_batches(numbered(2), 12, 0), 1)
    assert np.sort(batch["index"].reshape(6, 2)).tolist() == [[0, 1]] * 6


@pytest.mark.parametrize("lazy", [False, True])
def test_closing_ends_the_threads(numbered: Callable, lazy: bool) -> None:
    before = set(threading.enumerate())
    batches = train_batches(numbered(LENGTH, lazy), BATCH, 0, prefetch=3, threads=3)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_the_source_raises_reaches_the_consumer(
    numbered: Callable, lazy: bool, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = numbered(LENGTH, lazy)
    broken = Order(LENGTH, 0).at(np.arange(2 * BATCH, 3 * BATCH))[3]
    name = "read" if isinstance(source, LazySource) else "gather"
    healthy = getattr(source, name)

    def failing(wanted: np.ndarray | int) -> object:
        if broken in np.atleast_1d(wanted):
            raise UserError("example is broken")
        return healthy(wanted)

    monkeypatch.setattr(source, name, failing)
    before = set(threading.enumerate())
    batches = train_batches(source, BATCH, 0, prefetch=prefetch, threads=2)
    assert [shown(next(batches)).shape for _ in range(2)] == [(BATCH,)] * 2
    with pytest.raises(UserError, match="example is broken"):
        next(batches)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_bad_sizes_are_refused_when_called(numbered: Callable) -> None:
    source = numbered(LENGTH)
    with pytest.raises(UserError, match="batch_size=9 does not divide into 2 equal parts"):
        train_batches(source, 9, 0, share=Share((0,), 2))
    with pytest.raises(UserError, match="batch_size=0"):
        eval_batches(source, 0)
    with pytest.raises(ValueError, match="are not all of 0 to 1"):
        eval_batches(source, 8, Share((2,), 2))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.sampled_from([1, 2, 3]), st.booleans())
def test_blocks_of_any_hosts_make_up_the_batch(
    numbered: Callable, order: list[int], hosts: int, measured: bool
) -> None:
    source, batch, each = numbered(LENGTH), 12, 6 // hosts
    make = eval_batches if measured else functools.partial(train_batches, seed=4)
    for step, plain in enumerate(take(make(source, batch), 2)):
        found = np.full(batch, -1)
        for host in range(hosts):
            blocks = tuple(sorted(order[host * each : (host + 1) * each]))
            own = take(make(source, batch, share=Share(blocks, 6)), 2)[step]["index"]
            found[np.concatenate([np.arange(2 * b, 2 * b + 2) for b in blocks])] = own
        np.testing.assert_array_equal(found, plain["index"])
