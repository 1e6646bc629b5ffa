"""A .npz file of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigr_jax.data import Source, open_source
from bigr_jax.errors import UserError

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (40, 6, 6), dtype=np.uint8)
LABELS = np.arange(40) % 4


def opened(path: Path, split: str = "train", size: int = 6, channels: int = 1) -> Source:
    return open_source({"source": f"npz:{path}", "size": size, "channels": channels}, split)


@pytest.mark.parametrize(
    ("image", "label"),
    [("image", "label"), ("images", "labels"), ("x", "y"), ("arr_0", "arr_1"), ("x", "labels")],
)
def test_parts_hold_every_image_once_under_any_of_the_names(
    tmp_path: Path, image: str, label: str
) -> None:
    path = tmp_path / "set.npz"
    arrays: dict[str, Any] = {image: IMAGES, label: LABELS}
    np.savez(path, **arrays)
    parts = [opened(path, split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [36, 4]
    assert sorted(parts[1].gather(np.arange(4))["label"].tolist()) == [0, 1, 2, 3]
    batches = [part.gather(np.arange(len(part))) for part in parts]
    together = np.concatenate([batch["image"] for batch in batches])[..., 0]
    expected = {picture.tobytes(): label for picture, label in zip(IMAGES, LABELS, strict=True)}
    labels = np.concatenate([batch["label"] for batch in batches])
    for picture, number in zip(together, labels, strict=True):
        assert expected.pop(picture.tobytes()) == number
    assert not expected
    assert parts[0].info.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("ending", ["", "_train"])
def test_a_test_part_of_its_own_is_used(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "set.npz"
    train: dict[str, Any] = {f"x{ending}": IMAGES[:30], f"y{ending}": LABELS[:30]}
    np.savez_compressed(path, **train, x_test=IMAGES[30:], y_test=LABELS[30:] + 3)
    held = opened(path, "test")
    np.testing.assert_array_equal(held.gather(np.arange(10))["image"][..., 0], IMAGES[30:])
    assert len(opened(path)) == 30
    assert held.info.num_classes == opened(path).info.num_classes == 7


def test_colour_and_size_are_fitted(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=rng.integers(0, 256, (10, 9, 7, 4), dtype=np.uint8), labels=LABELS[:10])
    assert opened(path, size=4, channels=3).gather(np.arange(2))["image"].shape == (2, 4, 4, 3)
    assert opened(path, channels=0).info.image_shape == (6, 6, 3)
    np.savez(path, images=IMAGES, labels=LABELS)
    assert opened(path, channels=0).info.image_shape == (6, 6, 1)
    assert opened(path, size=12).gather(np.arange(2))["image"].shape == (2, 12, 12, 1)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": IMAGES}, "set.npz holds pictures; expected images under one of image, im"),
        ({"x": IMAGES}, "set.npz holds x; expected"),
        ({"x": IMAGES / 255, "y": LABELS}, r"float64 \(40, 6, 6\), expected uint8 \[N, H, W\]"),
        ({"x": IMAGES[:, None, :2], "y": LABELS}, r"images are uint8 \(40, 1, 2, 6\)"),
        ({"x": IMAGES, "y": LABELS[:9]}, r"labels are int64 \(9,\), expected 40 integers"),
        ({"x": IMAGES, "y": LABELS / 2}, r"labels are float64 \(40,\), expected 40 integers"),
        ({"x": IMAGES, "y": LABELS - 1}, "labels start at -1, expected 0 to classes - 1"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "set.npz holds no images"),
        ({"x": IMAGES, "y": np.asarray(["a"] * 40, object)}, "not a .npz file of plain arrays"),
    ],
)
def test_arrays_of_another_form_are_named(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=words):
        opened(path)


def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz, and there is no such file"):
        opened(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("PK but not really")
    with pytest.raises(UserError, match=r"text\.npz is not a \.npz file of plain arrays"):
        opened(text)
    single = tmp_path / "single.npy"
    np.save(single, IMAGES)
    with pytest.raises(UserError, match=r"single\.npy is not a \.npz file"):
        opened(single)


def test_a_part_without_images_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x=IMAGES[:2], y=LABELS[:2])
    with pytest.raises(UserError, match="has no images for split 'test'"):
        opened(path, "test")
