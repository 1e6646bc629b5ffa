from __future__ import annotations

import numpy as np
import pytest

from bigr_jax.data import phrases
from bigr_jax.data.opening import open_source
from bigr_jax.errors import UserError

WORDS = phrases.vocabulary()


def rows(split: str, size: int = 16) -> np.ndarray:
    source = open_source({"source": "phrases", "size": size, "channels": 0}, split)
    return source.gather(np.arange(len(source)))["tokens"]


def test_a_caption_says_its_scene_and_nothing_else() -> None:
    slots = list(phrases.SLOTS.items())
    for row in rows("test"):
        things, text = [WORDS[token] for token in row[:3]], phrases.said(row[3:]).split()
        for thing, (slot, kinds) in zip(things, slots, strict=True):
            name, _, number = thing.strip("<>").partition(":")
            assert name == slot
            chosen = [word for word in text if word in " ".join(kinds).split()]
            assert len(chosen) == 1 and chosen[0] in kinds[int(number)].split()
            text = [slot if word == chosen[0] else word for word in text]
        assert " ".join(text) in phrases.PATTERNS
        end = row.tolist().index(WORDS.index(phrases.END))
        assert (row[end + 1 :] == WORDS.index(phrases.PADDING)).all()


def test_no_scene_is_of_both_parts_and_captions_stand_together() -> None:
    scenes = {split: rows(split)[:, :3] for split in ("train", "test")}
    found = {split: {tuple(row) for row in part.tolist()} for split, part in scenes.items()}
    assert not found["train"] & found["test"]
    assert len(found["train"]) + len(found["test"]) == 10 * 8 * 6
    for split, copies in (("train", 40), ("test", 5)):
        whole = scenes[split].reshape(-1, copies, 3)
        assert (whole == whole[:, :1]).all() and len(whole) == len(found[split])


def test_patterns_and_words_come_as_often_as_they_should() -> None:
    text = [phrases.said(row[3:]).split() for row in rows("train")]
    share = np.mean(["picture" in words for words in text])
    assert abs(share - phrases.PATTERN_WEIGHTS[-1]) < 0.01
    dogs = [words for words in text if set(words) & set(phrases.SUBJECTS[0].split())]
    first = np.mean(["dog" in words for words in dogs])
    assert abs(first - phrases.WORD_WEIGHTS[0]) < 0.05


def test_every_opening_is_the_same_and_a_short_one_refused() -> None:
    np.testing.assert_array_equal(rows("test"), rows("test"))
    with pytest.raises(UserError, match=r"data.size=12 does not hold a caption; legal: from 13"):
        rows("train", 12)
