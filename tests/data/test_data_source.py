"""Sources in memory and lazily decoded ones give the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data import ArraySource, Info, LazySource
from bigr_jax.data.source import Request, in_memory, in_threads, with_progress
from bigr_jax.errors import UserError


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("indices", [[], [4], [299, 0, 0, 257]])
def test_gather_takes_any_indices(numbered: Callable, lazy: bool, indices: list[int]) -> None:
    batch = numbered(300, lazy).gather(np.asarray(indices, np.int64))
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    expected = [[index // 256, index % 256] for index in indices]
    np.testing.assert_array_equal(batch["image"].reshape(-1, 2), np.reshape(expected, (-1, 2)))
    np.testing.assert_array_equal(batch["label"], np.asarray(indices, int) % 3)


def test_records_that_come_together_are_asked_for_once() -> None:
    class Together:
        asked: list[list[int]] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 9

        def __getitems__(self, indices: list[int]) -> list[int]:
            self.asked.append(indices)
            return [10 * index for index in indices]

    info = Info("x", 1, ("a",), (1, 1, 1), "none", "generated")
    source = LazySource(Together(), lambda raw: (np.full((1, 1, 1), raw, np.uint8), 0), info)
    assert source.gather(np.asarray([3, 1]))["image"].ravel().tolist() == [30, 10]
    assert Together.asked == [[3, 1]]


def spoilt(length: int, corrupt: set[int], record_fails: bool = False) -> LazySource:
    """Image i shows the number i, but some cannot be decoded or not even be fetched."""

    class Records:
        def __len__(self) -> int:
            return length

        def __getitem__(self, index: int) -> int:
            if record_fails and index in corrupt:
                raise OSError("the disk says no")
            return index

        def __getitems__(self, indices: list[int]) -> list[int]:
            return [self[index] for index in indices]

    def decode(number: int) -> tuple[np.ndarray, int]:
        if number in corrupt:
            raise SyntaxError("not an image")
        return np.full((1, 1, 1), number % 256, np.uint8), number

    return LazySource(Records(), decode, Info("x", 1, ("a",), (1, 1, 1), "none", "here"))


@pytest.mark.parametrize("record_fails", [False, True])
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.lists(st.integers(0, 8), max_size=12))
def test_a_corrupt_example_is_the_next_good_one_whatever_was_read_before(
    record_fails: bool, length: int, corrupt: set[int], order: list[int]
) -> None:
    corrupt = {index for index in corrupt if index < length}
    if len(corrupt) == length:
        corrupt.remove(length - 1)
    good = [index for index in range(length) if index not in corrupt]
    # The smallest distance onwards, around the end.
    distance = (np.asarray(good) - np.arange(length)[:, None]) % length
    stand_in = np.asarray(good)[distance.argmin(-1)].tolist()
    source, order = spoilt(length, corrupt, record_fails), [index % length for index in order]
    assert source.gather(np.asarray(order, int))["label"].tolist() == [stand_in[i] for i in order]
    assert [source.read(i)[1] for i in range(length)] == stand_in
    assert source.corrupt == len(corrupt)


def test_each_is_named_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    source = spoilt(20, {3, 4})
    for _ in range(3):
        source.gather(np.arange(20))
    assert source.corrupt == 2
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(line.split(" cannot")[0] for line in lines) == [
        "record 3 of here",
        "record 4 of here",
    ]
    assert all("(not an image); the next one stands in for it" in line for line in lines)
    assert in_memory(spoilt(20, {3, 4})).corrupt == 2
    assert in_memory(spoilt(20, set())).corrupt == 0


def test_more_than_ten_and_one_in_a_hundred_is_an_error() -> None:
    few = spoilt(2400, set(range(0, 2400, 120)))
    few.gather(np.arange(2400))
    assert few.corrupt == 20
    spoilt(50, set(range(10))).gather(np.arange(50))
    with pytest.raises(
        UserError, match=r"^11 of \d+ examples of here cannot be read, more than 1%"
    ):
        spoilt(50, set(range(11))).gather(np.arange(50))
    with pytest.raises(
        UserError, match=r"none of the 3 examples of here can be read; record \d of"
    ):
        spoilt(3, {0, 1, 2}).read(1)


def test_a_mistake_of_the_users_is_not_passed_over() -> None:
    def decode(number: int) -> tuple[np.ndarray, int]:
        raise UserError("another form")

    source = LazySource(range(3), decode, Info("x", 1, ("a",), (1, 1, 1), "none", "here"))
    with pytest.raises(UserError, match="another form"):
        source.gather(np.arange(3))
    assert source.corrupt == 0


@pytest.mark.parametrize("length", [1, 1024, 1025])
def test_decoding_into_memory_keeps_everything(
    numbered: Callable, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, lazy = in_memory(numbered(length, lazy=True)), numbered(length, lazy=True)
    assert isinstance(stored, ArraySource)
    assert (len(stored), stored.info) == (length, lazy.info)
    everything = np.arange(length)
    np.testing.assert_array_equal(
        stored.gather(everything)["image"], numbered(length).gather(everything)["image"]
    )
    np.testing.assert_array_equal(stored.gather(everything)["label"], everything % 3)
    assert capsys.readouterr().err == f"decoding {length} images of numbered\n"


def test_progress_is_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(with_progress("abc", 3, "reading")) == ["a", "b", "c"]
    assert "reading: 100%" in capsys.readouterr().err


def test_threads_keep_the_order_and_the_exceptions() -> None:
    assert list(in_threads(lambda item: -item, range(3000))) == [-item for item in range(3000)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // item, [1, 0]))


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    info = Info("x", 1, ("a",), (2, 2, 1), "none", "generated")
    with pytest.raises(ValueError, match=r"images are float64 .* expected uint8 \(3, 2, 2, 1\)"):
        ArraySource(np.zeros((3, 2, 2, 1)), np.zeros(3, int), info)
    with pytest.raises(ValueError, match=r"\(3, 2, 2, 1\), expected uint8 \(4, 2, 2, 1\)"):
        ArraySource(np.zeros((3, 2, 2, 1), np.uint8), np.zeros(4, int), info)


def test_what_fits_in_memory_is_counted_in_bytes() -> None:
    request = Request("npz:x", "x", "train", size=4, channels=3, data_dir="", ram_limit=480)
    assert request.image_shape == (4, 4, 3)
    assert request.fits_in_memory(10)
    assert not request.fits_in_memory(11)
