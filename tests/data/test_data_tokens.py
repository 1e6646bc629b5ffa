"""Sequences of tokens: what recall asks for, texts in pieces, and files of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bigr_jax.data.absent import open_or_describe
from bigr_jax.data.described import Described, describe, spec
from bigr_jax.data.opening import open_source
from bigr_jax.data.source import Info, Source
from bigr_jax.data.tokens import KEYS, RECALL_EXAMPLES, VALUES, TokenSource
from bigr_jax.errors import UserError


def opened(source: str, size: int, split: str = "train") -> Source:
    return open_source({"source": source, "size": size, "channels": 0}, split)


def test_recall_asks_one_of_twins_for_what_the_other_shows() -> None:
    source = opened("recall", 32, "test")
    assert len(source) == RECALL_EXAMPLES["test"] and source.info.num_classes == 65
    rows = source.gather(np.arange(300))
    shown_first = 0
    for tokens, targets in zip(rows["tokens"], rows["targets"], strict=True):
        keys, values, wanted = tokens[::2], tokens[1::2], targets[1::2]
        assert (targets[::2] == -1).all() and (keys < KEYS).all()
        for key in np.unique(keys):
            one, other = np.flatnonzero(keys == key)
            asked, told = (one, other) if values[one] == KEYS + VALUES else (other, one)
            assert values[asked] == KEYS + VALUES and wanted[told] == -1
            assert KEYS <= values[told] < KEYS + VALUES and wanted[asked] == values[told]
            shown_first += told < asked
        assert len(np.unique(keys)) == 8
    # Either side is as likely, which is what caps a model that reads in one direction.
    assert abs(shown_first / 2400 - 0.5) < 0.05


def test_recall_is_the_same_at_every_opening_and_differs_between_the_parts() -> None:
    one, other, test = opened("recall", 16), opened("recall", 16), opened("recall", 16, "test")
    rows = np.arange(64)
    for name, column in one.gather(rows).items():
        np.testing.assert_array_equal(column, other.gather(rows)[name])
    assert (one.gather(rows)["tokens"] != test.gather(rows)["tokens"]).any(axis=1).all()


@pytest.mark.parametrize("size", [0, 6, 4 * KEYS + 4])
def test_recall_of_an_illegal_length(size: int) -> None:
    with pytest.raises(UserError, match=rf"data.size={size}.*(multiples of 4|integer from 1)"):
        opened("recall", size)


def test_text_in_pieces_of_every_file_once(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_bytes(bytes([number]) * 8)
    train, test = (opened(f"text:{tmp_path}", 3, split) for split in ("train", "test"))
    seen = [np.unique(part.gather(np.arange(len(part)))["tokens"]) for part in (train, test)]
    # Between two files stands the end of a line, 10.
    assert set(np.concatenate(seen)) == set(range(20)) and len(set(seen[1]) - {10}) == 2
    assert train.info.num_classes == 257 and train.info.image_shape == (3,)


def test_text_of_one_file_ends_with_its_test_part(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(bytes(range(100)))
    assert opened(f"text:{path}", 10).gather(np.arange(9))["tokens"].max() == 89
    assert opened(f"text:{path}", 10, "test").gather(np.arange(1))["tokens"].min() == 90


def test_text_of_the_standard_library() -> None:
    train, test = opened("text:python", 64), opened("text:python", 64, "test")
    assert len(train) > 4 * len(test) > 4 * 1000
    text = bytes(train.gather(np.arange(len(train)))["tokens"].astype(np.uint8))
    # Without the tests, in which every function asserts.
    assert text.count(b"def ") > 10_000 and text.count(b"self.assert") < 100


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no text at"):
        opened(f"text:{tmp_path}/nowhere", 8)
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(UserError, match="has 2 bytes, under 8"):
        opened(f"text:{tmp_path}/short", 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "train.npy", np.arange(24, dtype=np.uint16).reshape(6, 4))
    (tmp_path / "tokens.json").write_text(json.dumps({"vocabulary": 50}))
    return tmp_path


def test_files_of_tokens(folder: Path) -> None:
    source = opened(f"tokens:{folder}", 4)
    assert (len(source), source.info.num_classes) == (6, 50)
    np.testing.assert_array_equal(source.gather(np.array([5, 0]))["tokens"][0], [20, 21, 22, 23])
    assert spec(source) == {"tokens": ((4,), np.dtype(np.int32))}
    again = Described(json.loads(json.dumps(describe(source))), lambda: source)
    assert again.spec == spec(source) and again.info == source.info


def test_files_of_tokens_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train.npy is uint16 \(6, 4\), expected .*data.size=5"):
        opened(f"tokens:{folder}", 5)
    with pytest.raises(UserError, match=r"test\.npy cannot be read"):
        opened(f"tokens:{folder}", 4, "test")
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(UserError, match="does not tell the size of the vocabulary"):
        opened(f"tokens:{folder}", 4)


def test_a_plan_needs_no_tokens() -> None:
    section = {"source": "tokens:/nowhere", "size": 128, "channels": 0}
    with pytest.raises(UserError, match=r"--config.data.num_classes=.*--config.data.examples="):
        open_or_describe(type("Section", (), section), "train")
    known = {**section, "num_classes": 30522, "examples": 1000}
    found = open_or_describe(type("Section", (), known), "train")
    assert spec(found) == {"tokens": ((128,), np.dtype(np.int32))} and len(found) == 1000


def test_columns_that_do_not_belong_together() -> None:
    info = Info("set", 5, (), (4,), "", "")
    with pytest.raises(ValueError, match=r"tokens is float64 \(2, 4\)"):
        TokenSource({"tokens": np.zeros((2, 4))}, info)
    with pytest.raises(ValueError, match="different lengths"):
        columns = {"tokens": np.zeros((2, 4), int), "targets": np.zeros((3, 4), int)}
        TokenSource(columns, info)
