"""A folder of images: layouts, the split, unreadable files, in memory and decoded lazily."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data import ArraySource, LazySource, Source, open_source, train_batches
from bigr_jax.errors import UserError


def opened(root: Path | str, split: str = "train", **more: int) -> Any:
    section = {"source": f"folder:{root}", "size": 8, "channels": 1, **more}
    return open_source(section, split)


def shown(source: Source) -> list[tuple[int, int]]:
    batch = source.gather(np.arange(len(source)))
    greys = batch["image"][:, 0, 0, 0].tolist()
    return list(zip(greys, batch["label"].tolist(), strict=True))


def test_classes_are_the_sorted_subfolders_and_the_split_is_stratified(
    image_folder: Callable,
) -> None:
    root = image_folder({"b cat": 20, "a dog": 5, "single": 1})
    train, test = opened(root), opened(root, "test")
    assert train.info.class_names == ("a dog", "b cat", "single")
    assert train.info.image_shape == (8, 8, 1)
    assert opened(root, channels=0).info.image_shape == (8, 8, 3)
    assert (len(train), len(test)) == (23, 3)
    everything = [(number, 1) for number in range(20)] + [(50 + i, 0) for i in range(5)]
    assert sorted(shown(train) + shown(test)) == sorted([*everything, (100, 2)])
    assert sorted(label for _, label in shown(test)) == [0, 1, 1]


def test_the_split_survives_new_classes_and_moving(image_folder: Callable, tmp_path: Path) -> None:
    root = image_folder({"cat": 20, "dog": 5})
    before = shown(opened(root, "test"))
    (root / "zebra").mkdir()
    Image.new("L", (8, 8), 200).save(root / "zebra" / "0.png")
    moved = root.rename(tmp_path / "elsewhere")
    assert shown(opened(moved, "test")) == before


@pytest.mark.parametrize("held", ["test", "val"])
def test_train_and_test_folders_are_used(image_folder: Callable, held: str) -> None:
    root = image_folder({"cat": 3, "dog": 2}, "train")
    (root / held / "dog").mkdir(parents=True)
    Image.new("L", (8, 8), 99).save(root / held / "dog" / "x.png")
    assert shown(opened(root)) == [(0, 0), (1, 0), (2, 0), (50, 1), (51, 1)]
    assert shown(opened(root, "test")) == [(99, 1)]
    (root / held / "owl").mkdir()
    Image.new("L", (8, 8), 99).save(root / held / "owl" / "x.png")
    with pytest.raises(UserError, match=rf"{held} has classes that .*train lacks: owl"):
        opened(root, "test")


def test_a_train_folder_alone_is_split(image_folder: Callable) -> None:
    root = image_folder({"cat": 4, "dog": 4}, "train")
    assert opened(root).info.class_names == ("cat", "dog")
    assert (len(opened(root)), len(opened(root, "test"))) == (6, 2)


def test_formats_deeper_folders_and_files_of_other_kinds(tmp_path: Path) -> None:
    deep = tmp_path / "cat" / "one" / "two"
    deep.mkdir(parents=True)
    for suffix in ("png", "JPG", "jpeg", "webp", "bmp", "gif"):
        Image.new("RGB", (20, 12), (100, 100, 100)).save(deep / f"a.{suffix}")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.png").write_bytes(b"")
    sources = [opened(tmp_path, split, channels=3) for split in ("train", "test")]
    assert [len(source) for source in sources] == [5, 1]
    for source in sources:
        images = source.gather(np.arange(len(source)))["image"].astype(int)
        assert abs(images - 100).max() <= 1


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    frames = [Image.new("L", (8, 8), grey) for grey in (40, 200)]
    frames[0].save(tmp_path / "cat" / "a.gif", save_all=True, append_images=frames[1:])
    assert shown(opened(tmp_path)) == [(40, 0)]


def test_the_home_sign_is_expanded(image_folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder({"cat": 2})
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(opened(f"~/{root.name}")) == 1


def spoil(root: Path) -> list[Path]:
    text, cut = root / "cat" / "text.png", root / "cat" / "cut.png"
    text.write_text("not an image")
    whole = root / "cat" / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    whole.unlink()
    return [text, cut]


def test_unreadable_images_are_named_and_replaced_by_the_next(
    image_folder: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder({"cat": 9, "dog": 2}, "train")
    bad = [*spoil(root / "train"), root / "train" / "cat" / "3.jpg"]
    bad[-1].write_bytes(b"")
    (root / "val" / "dog").mkdir(parents=True)
    Image.new("L", (8, 8), 99).save(root / "val" / "dog" / "x.png")
    # By name: 0 1 2 3.jpg 3.png ... 8 cut text, and the first dog stands in for the last two.
    expected = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 50, 50, 50, 51]
    for limit in (0, 1 << 30):
        caplog.clear()
        source = opened(root, ram_limit=limit)
        assert shown(source) == [(grey, int(grey >= 50)) for grey in expected]
        for path in bad:
            assert caplog.text.count(f"{path} cannot be read (") == 1
        assert source.corrupt == 3
        assert shown(source) == [(grey, int(grey >= 50)) for grey in expected]
        assert source.corrupt == 3


def test_a_cut_photograph_is_found_when_it_is_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cat").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for number in range(4):
        Image.fromarray(pixels).save(tmp_path / "cat" / f"{number}.jpg")
    whole = (tmp_path / "cat" / "1.jpg").read_bytes()
    for cut in (tmp_path / "cat" / "1.jpg", tmp_path / "cat" / "2.jpg"):
        cut.write_bytes(whole[: len(whole) // 2])
        with Image.open(cut) as image:
            assert image.size == (64, 64), "the head is whole"
    sources = [opened(tmp_path, split, ram_limit=0) for split in ("train", "test")]
    for source in sources:
        everything = source.gather(np.arange(len(source)))["image"]
        assert everything.shape == (len(source), 8, 8, 1)
        assert (everything == everything[0]).all()
    assert sum(source.corrupt for source in sources) == 2
    assert "truncated" in caplog.text


def test_a_folder_of_rubbish_is_an_error(image_folder: Callable) -> None:
    root = image_folder({"cat": 3}, "train")
    (root / "val" / "cat").mkdir(parents=True)
    for number in range(5):
        (root / "val" / "cat" / f"bad{number}.png").write_bytes(b"")
    for number in range(25):
        (root / "train" / "cat" / f"bad{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=rf"none of the 5 examples of {root} can be read; .*bad\d"):
        opened(root, "test")
    # Several threads read: some have found more by the time that one has found enough.
    with pytest.raises(
        UserError, match=r"[12]\d of \d+ examples of .* cannot be read, more than 1%; "
    ):
        opened(root)


def test_a_large_folder_is_decoded_lazily_to_the_same(image_folder: Callable) -> None:
    root = image_folder({"cat": 12, "dog": 7})
    stored, lazy = opened(root), opened(root, ram_limit=100)
    assert isinstance(stored, ArraySource)
    assert isinstance(lazy, LazySource)
    assert shown(stored) == shown(lazy)
    pair = [train_batches(source, 5, seed=2, threads=3) for source in (stored, lazy)]
    for _ in range(8):
        one, other = (next(batches) for batches in pair)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    for batches in pair:
        batches.close()


@pytest.mark.parametrize("inside", [None, "nothing", "images", "empty class"])
def test_another_layout_is_answered_with_the_expected_one(tmp_path: Path, inside: str) -> None:
    root = tmp_path / "set"
    if inside:
        root.mkdir()
    if inside == "images":
        Image.new("L", (8, 8)).save(root / "a.png")
    if inside == "empty class":
        (root / "cat").mkdir()
    state = "has no class folders with images" if inside else "is not a folder"
    with pytest.raises(UserError) as caught:
        opened(root)
    assert f"{root} {state}; expected {root}/CLASS/*.png (or .jpg" in str(caught.value)
    assert "train/ and test/" in str(caught.value)


def test_a_part_without_images_is_named(image_folder: Callable) -> None:
    root = image_folder({"cat": 1, "dog": 1})
    assert len(opened(root)) == 2
    with pytest.raises(UserError, match="has no images for split 'test': give it a test folder"):
        opened(root, "test")


def test_names_that_are_not_unicode_are_split_too(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(2):
        name = os.fsdecode(b"\xff%d.png" % number)
        try:
            Image.new("L", (8, 8), number).save(tmp_path / "cat" / name)
        except OSError:
            pytest.skip("this file system takes only unicode names")
    assert (len(opened(tmp_path)), len(opened(tmp_path, "test"))) == (1, 1)
