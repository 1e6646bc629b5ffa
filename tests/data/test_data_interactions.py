"""Logs as sequences: what is held out, how windows lie, what is read and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data import cards, interactions
from bigr_jax.data.absent import open_or_describe
from bigr_jax.data.described import spec
from bigr_jax.data.interactions import TEST, TRAIN, VALIDATION, window_starts
from bigr_jax.data.made_interactions import Law, best_guess, made
from bigr_jax.data.opening import open_source as opened
from bigr_jax.errors import UserError

LINES = "user,item,time\n" + "\n".join(
    f"u{user},{item},{time}"
    for user, items in enumerate([[7, 7, 9, 10], [10, 9, 8], [7, 8], [7, 10, 9, 8, 11]])
    for time, item in enumerate(items)
)


def open_source(section: Any, split: str) -> Any:
    return opened(section, split)


def section(source: str, size: int = 3, stride: float = 1.0) -> dict[str, object]:
    return {"source": f"interactions:{source}", "size": size, "channels": 0, "stride": stride}


def rows(source: Any) -> dict[str, np.ndarray]:
    return source.gather(np.arange(len(source)))


def had(source: Any, seen: np.ndarray) -> list[set[str]]:
    info = source.info
    bits = np.unpackbits(seen, axis=1, count=info.num_classes)
    return [{info.class_names[item] for item in np.flatnonzero(row)} for row in bits]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(LINES, "utf-8")
    return path


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 25))
def test_windows_end_with_the_sequence_and_leave_nothing_out(
    length: int, size: int, step: int
) -> None:
    step = min(step, size)
    starts = window_starts(length, size, step)
    assert starts == sorted(set(starts)) and starts[0] == 0
    assert starts[-1] == max(0, length - size)
    gaps = np.diff(starts)
    assert (gaps <= step).all() and (gaps[1:] == step).all()
    covered = {place for start in starts for place in range(start, min(start + size, length))}
    assert covered == set(range(length))


def test_the_last_two_items_are_held_out(log: Path) -> None:
    train, test = (open_source(section(str(log)), split) for split in ("train", "test"))
    # u2 has too few. In training 7 stands thrice, then 9 and 10 once, of the same rank by number.
    names = ("<padding>", "7", "9", "10", "8", "11", "<mask>")
    assert train.info.class_names == test.info.class_names
    assert set(train.info.class_names) == set(names) and train.info.class_names[1] == "7"
    assert train.info.num_classes == 7 and train.info.image_shape == (3,)
    name = np.asarray(train.info.class_names)
    found = [[str(x) for x in name[row] if x != "<padding>"] for row in rows(train)["tokens"]]
    assert found == [["7", "7"], ["10"], ["7", "10", "9"]]
    assert (rows(train)["part"] == TRAIN).all()
    assert had(train, rows(train)["seen"]) == [{"7"}, {"10"}, {"7", "10", "9"}]
    asked = rows(test)
    assert asked["part"].tolist() == [VALIDATION] * 3 + [TEST] * 3
    words = [[str(x) for x in name[row] if x != "<padding>"] for row in asked["tokens"]]
    assert words[:3] == [["7", "7", "9"], ["10", "9"], ["10", "9", "8"]]
    assert words[3:] == [["7", "9", "10"], ["10", "9", "8"], ["9", "8", "11"]]
    assert had(test, asked["seen"]) == [
        {"7"}, {"10"}, {"7", "10", "9"}, {"7", "9"}, {"10", "9"}, {"7", "10", "9", "8"},
    ]  # fmt: skip
    np.testing.assert_array_equal(train.counts(), np.bincount(np.concatenate(list(
        train.sequences())), minlength=7))  # fmt: skip
    assert list(map(len, train.sequences())) == [2, 1, 3]


def test_nothing_of_what_is_held_out_is_in_a_window_of_training() -> None:
    train, test = (open_source(section("made", 6, 0.5), split) for split in ("train", "test"))
    tokens, asked = rows(train)["tokens"], rows(test)
    bits = np.unpackbits(asked["seen"], axis=1, count=test.info.num_classes)
    # Nobody takes an item twice.
    assert not np.take_along_axis(bits, asked["tokens"][:, -1:], axis=1).any()
    held = asked["tokens"][asked["part"] == TEST][:, -2:]
    for sequence, pair in zip(train.sequences(), held.tolist(), strict=True):
        assert not set(pair) & set(sequence.tolist())
    ends = [sequence[-1] for sequence in train.sequences()]
    assert len(tokens) > len(ends) and set(ends) <= set(tokens[:, -1].tolist())
    assert (np.diff((tokens != 0).astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("mark", ["\t", "::", ","])
@pytest.mark.parametrize("headed", [False, True])
def test_files_of_several_forms_are_the_same_log(tmp_path: Path, mark: str, headed: bool) -> None:
    events = [("5", "30", "4", "100"), ("5", "9", "1", "90"), ("5", "10", "5", "100"),
              ("3", "9", "2", "7.5"), ("3", "10", "2", "8"), ("3", "30", "1", "9")]  # fmt: skip
    head = [("user_id:token", "item_id:token", "rating:float", "timestamp:float")]
    path = tmp_path / "log"
    lines = (head if headed else []) + events
    path.write_text("\r\n".join(mark.join(fields) for fields in lines) + "\n\n", "utf-8")
    log = interactions.read(path)
    names = np.asarray(["", *log.names])
    # User 3 comes before user 5; at time 100 the order of the lines holds.
    assert names[log.items].tolist() == ["9", "10", "30", "9", "30", "10"]
    assert log.starts.tolist() == [0, 3, 6]
    # 9 is trained on twice.
    assert log.names[0] == "9"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin with user, item and time"),
        ("1 2 3\n", "does not begin with user, item and time"),
        ("1,2\n", "2 columns are not user, item and time"),
        ("user,thing,time\n1,2,3\n", "no column of user, thing, time begins with 'item'"),
        ("1,2,3\n4,5\n", "line 2: '4,5' holds no user, item and time"),
        ("1,2,3\n4,5,noon\n", "line 2: '4,5,noon' holds no user"),
        ("user,item,time\n", "holds no interactions"),
        ("1,2,3\n1,3,4\n", "no user has 3 interactions"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=said):
        open_source(section(str(path)), "train")


def test_settings_that_are_not_legal_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, said in (
        (section("made", 1), "data.size=1 leaves no item before another"),
        (section("made", stride=0.0), r"data.stride=0.0 is not a share of a window; legal: \(0, 1"),
        (section(str(tmp_path / "none")), "there is no file .*legal: ml-100k, made"),
        (section(""), "lacks its NAME"),
    ):
        with pytest.raises(UserError, match=said):
            open_source(wanted, "train")
    monkeypatch.setattr(cards, "_places", lambda card: [])
    with pytest.raises(UserError, match="needs the data of recbole, which is not here; get it w"):
        open_source(section("ml-100k"), "train")


def test_a_log_that_is_not_here_has_shapes() -> None:
    wanted = {**section("/nowhere/log.tsv", 8), "num_classes": 21, "examples": 5}
    here = open_source(section("made", 8), "train")
    there = open_or_describe(SimpleNamespace(**wanted), "train")
    like = {name: (shape if name != "seen" else (3,), kind)
            for name, (shape, kind) in spec(here).items()}  # fmt: skip
    assert spec(there) == like and len(there) == 5 and there.info.image_shape == (8,)


@pytest.mark.skipif(cards.locate("ml-100k") is None, reason="recbole is not installed")
def test_movielens_is_whole() -> None:
    train, test = (open_source(section("ml-100k", 50, 0.5), split) for split in ("train", "test"))
    assert len(test.log.items) == 100_000 and len(test) == 2 * 943
    assert train.info.num_classes == 1682 + 2 and "Toy Story (1995)" in train.info.class_names
    counts = train.counts()
    assert counts.sum() == 100_000 - 2 * 943 and (np.diff(counts[1:-1]) <= 0).all()


def test_the_best_guess_weighs_all_that_may_have_been() -> None:
    rng = np.random.default_rng(0)
    follows = rng.dirichlet(np.ones(2), (2, 2))
    law = Law(follows, np.array([0, 0, 0, 1, 1, 1]), rng.random(6) + 0.1, 0.3)
    items = np.array([[0, 3, 1, 5], [4, 2, -1, -1], [-1, 5, 4, 0]])
    found = best_guess(law, items)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    for row, guess in zip(items, found, strict=True):
        history = [int(item) for item in row if item >= 0]
        joint = np.array([_probability(law, [*history, item]) if item not in history else 0.0
                          for item in range(6)])  # fmt: skip
        np.testing.assert_allclose(guess, joint / _probability(law, history), atol=1e-12)


def _probability(law: Law, items: list[int]) -> float:
    """Of a sequence, summed over the kinds at the start and over which items were any."""
    total = 0.0
    for start in itertools.product(range(2), range(2)):
        for skips in itertools.product((False, True), repeat=len(items)):
            earlier, later, value = *start, 0.25
            for place, (item, skip) in enumerate(zip(items, skips, strict=True)):
                left = [i for i in range(6) if i not in items[:place]]
                kind = law.kinds[item]
                if skip:
                    value *= law.skipped / len(left)
                    continue
                alike = sum(law.weights[i] for i in left if law.kinds[i] == kind)
                value *= (1 - law.skipped) * law.follows[earlier, later, kind]
                value *= law.weights[item] / alike
                earlier, later = later, kind
            total += value
    return total


def test_made_sequences_follow_their_law() -> None:
    law, items, lengths = made()
    assert all(len(set(row.tolist())) == len(row) for row in items)
    np.testing.assert_allclose(law.follows.sum(-1), 1)
    # One kind before tells a part of the next, two tell most of it.
    assert 0.3 < law.follows.mean(0).max(-1).mean() < 0.7 < law.follows.max(-1).min()
    kinds = law.kinds[items]
    ruled = law.follows[kinds[:, :-2], kinds[:, 1:-1]].argmax(-1) == kinds[:, 2:]
    assert 0.65 < ruled.mean() < 0.85
    assert lengths.min() >= 3 and len(made().events()[0]) == lengths.sum()
