"""Scenes: masks are what is drawn, nothing of the test part is trained on, all is repeatable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data import open_source, scenes
from bigr_jax.data.cards import locate
from bigr_jax.data.described import Described, describe, spec
from bigr_jax.data.source import NOT_ASKED, Request
from bigr_jax.errors import UserError

SIZE = 32
needs_digits = pytest.mark.skipif(locate("digits") is None, reason="scikit-learn is not installed")


def opened(split: str, source: str = "scenes:digits", size: int = SIZE, channels: int = 0) -> Any:
    return open_source({"source": source, "size": size, "channels": channels}, split)


def folder() -> Path:
    place = locate("digits")
    assert place is not None
    return place / "sklearn" / "datasets" / "images"


@needs_digits
def test_a_scene_is_the_same_whenever_and_beside_whichever_it_is_drawn() -> None:
    one = opened("train").gather(np.array([7, 0, 7, 7999]))
    scenes._scenes.cache_clear()
    other = opened("train").gather(np.array([7999, 7]))
    for name in ("image", "segments"):
        np.testing.assert_array_equal(one[name][[3, 0]], other[name])
        np.testing.assert_array_equal(one[name][0], one[name][2])
    assert (one["image"][0] != one["image"][1]).any()
    test = opened("test").gather(np.array([7]))
    assert (test["image"][0] != one["image"][0]).any()


@needs_digits
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_set_of_scenes_is(channels: int) -> None:
    source = opened("test", channels=channels)
    assert (len(source), len(opened("train", channels=channels))) == (1000, 8000)
    assert source.info.class_names == ("background", *"0123456789")
    assert source.info.num_classes == 11
    shape = (SIZE, SIZE, channels)
    columns = {"image": (shape, np.dtype("u1")), "segments": (shape[:2], np.dtype("u1"))}
    assert spec(source) == columns
    again = Described(json.loads(json.dumps(describe(source))), lambda: source)
    assert again.spec == columns and again.info == source.info
    segments = source.gather(np.arange(100))["segments"]
    assert set(np.unique(segments)) == {*range(11), NOT_ASKED}
    assert 0.7 < (segments == 0).mean() < 0.9 and (segments == NOT_ASKED).mean() < 0.1


@needs_digits
def test_no_object_and_no_place_of_the_test_part_is_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_out, seen = scenes.cut_out, []

    def recorded(picture: np.ndarray, length: int) -> np.ndarray:
        seen.append((picture.tobytes(), length))
        return cut_out(picture, length)

    monkeypatch.setattr(scenes, "cut_out", recorded)
    scenes._scenes.cache_clear()
    pictures = {}
    for split in ("train", "test"):
        seen.clear()
        opened(split).gather(np.arange(200))
        assert 4.2 < len(seen) / 200 < 4.8
        assert {length for _, length in seen} == set(range(7, 13))
        pictures[split] = {picture for picture, _ in seen}
        own = open_source({"source": "digits", "size": 8, "channels": 1}, split)
        part = own.gather(np.arange(len(own)))["image"]
        assert pictures[split] <= {picture.tobytes() for picture in part}
    assert not pictures["train"] & pictures["test"]
    for name in scenes.PHOTOGRAPHS:
        parts = [
            np.asarray(scenes.photograph(folder() / name, request(split)))
            for split in ("train", "test")
        ]
        with Image.open(folder() / name) as whole:
            np.testing.assert_array_equal(np.concatenate(parts), np.asarray(whole))


def request(split: str) -> Request:
    return Request("scenes:digits", "digits", split, SIZE, 3, "", 1 << 20)


def drawn(
    monkeypatch: pytest.MonkeyPatch, seed: int, pictures: np.ndarray, count: int, noise: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a scene of so many objects on one colour with noise; object i is of class i."""
    monkeypatch.setattr(scenes, "OBJECTS", (count, count))
    rng = np.random.default_rng(0)
    colour = np.array([90, 130, 170]) + rng.integers(-noise, noise + 1, (150, 200, 3))
    photograph = Image.fromarray(colour.astype(np.uint8))
    labels = np.arange(len(pictures))
    return scenes.scene(np.random.RandomState(seed), [photograph], pictures, labels, 64)


def test_a_later_object_stands_in_front_of_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # Solid blocks of four forms.
    pictures = np.zeros((4, 8, 8), np.uint8)
    for number in range(4):
        pictures[number, 1 : 5 + number % 2, 2 : 5 + number // 2] = 255
    overlapping = 0
    for seed in range(8):
        before = drawn(monkeypatch, seed, pictures, 0, 40)
        assert not before[1].any()
        for count in range(1, 7):
            after = drawn(monkeypatch, seed, pictures, count, 40)
            changed = (after[0] != before[0]).any(-1)
            rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
            assert 14 <= max(len(rows), len(columns)) <= 24
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            expected = before[1].copy()
            expected[box] = after[1][rows[0], columns[0]]
            np.testing.assert_array_equal(after[1], expected)
            level = after[0][box].reshape(-1, 3)
            assert expected[box][0, 0] > 0 and (level == level[0]).all()
            gap = abs(before[0][box].reshape(-1, 3).mean(0) - level[0])
            assert gap.min() > 47 and gap.max() < 121
            overlapping += int(before[1][box].any())
            before = after
    assert overlapping > 10


def test_masks_are_where_an_object_covers_more_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((1, 12, 12), np.uint8)
    picture[0, 1:11, 1:11], picture[0, 3:9, 3:9] = 110, 255
    for seed in range(5):
        background, _ = drawn(monkeypatch, seed, picture, 0)
        image, segments = drawn(monkeypatch, seed, picture, 1)
        change = (image.astype(float) - background)[..., 0]
        cover = change / change.flat[abs(change).argmax()]
        clear = (abs(cover - 0.5) > 0.02) & (abs(cover - 0.1) > 0.02)
        expected = np.where(cover > 0.5, 1, np.where(cover > 0.1, NOT_ASKED, 0))
        np.testing.assert_array_equal(segments[clear], expected[clear])
        assert (segments == 1).sum() > 20 and (segments == NOT_ASKED).sum() > 20


@needs_digits
def test_a_tile_is_of_the_class_of_its_object() -> None:
    source = opened("train", "tiles:digits", 64, 1)
    batch = source.gather(np.arange(40))
    assert (source.info.name, set(np.unique(batch["segments"]))) == ("tiles:digits", {*range(11)})
    assert 0.2 < (batch["segments"] == 0).mean() < 0.7
    random, photographs = np.random.RandomState(3), [Image.new("RGB", (200, 150), (90, 130, 170))]
    picture = np.zeros((1, 8, 8), np.uint8)
    picture[0, 2:6, 3:5] = 255
    for _ in range(5):
        image, segments = scenes.scene(random, photographs, picture, np.array([7]), 64, True)
        # Where no tile lies, the photograph is as it was.
        np.testing.assert_array_equal(
            image[segments == 0], np.tile([90, 130, 170], (int((segments == 0).sum()), 1))
        )
        assert set(np.unique(segments)) <= {0, 8}
        assert (image[segments == 8] != [90, 130, 170]).any(-1).mean() > 0.95


@pytest.mark.parametrize(
    ("source", "size", "text"),
    [
        ("scenes:cats", 32, "no objects 'cats'; legal: mnist5k, digits, fashion_mnist"),
        ("scenes:digits", 15, "data.size=15 is too small for scenes; legal: from 16"),
        ("scenes", 32, "lacks its NAME: scenes:NAME"),
    ],
)
def test_scenes_that_cannot_be(source: str, size: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        opened("train", source, size)


def test_photographs_that_are_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place in (None, tmp_path):
        monkeypatch.setattr(scenes, "locate", lambda name, place=place: place)
        with pytest.raises(UserError, match=r"needs china.jpg and flower.jpg of .*pip install"):
            opened("train")
