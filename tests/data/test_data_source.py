"""Sources in memory and lazily decoded ones give the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bigr_jax.data import ArraySource, Info, LazySource
from bigr_jax.data.source import Request, in_memory, in_threads, with_progress


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
