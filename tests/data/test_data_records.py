"""ArrayRecord files: what is written is read, from memory or lazily, split by name."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data import ArraySource, LazySource, eval_batches, open_source
from bigr_jax.data.records import write_arrayrecord
from bigr_jax.errors import UserError

pytest.importorskip("array_record", reason="array_record is not installed")

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (11, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(11) % 4


def opened(glob: str, split: str = "train", **more: int) -> Any:
    section = {"source": f"arrayrecord:{glob}", "size": 6, "channels": 3, **more}
    return open_source(section, split)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_what_is_written_is_read(tmp_path: Path, limit: int) -> None:
    write_arrayrecord(tmp_path / "set-train-0.arrayrecord", IMAGES[:4], LABELS[:4])
    write_arrayrecord(tmp_path / "set-train-1.arrayrecord", IMAGES[4:], LABELS[4:])
    source = opened(f"{tmp_path}/*.arrayrecord", ram_limit=limit)
    assert isinstance(source, ArraySource if limit else LazySource)
    assert source.info.num_classes == 4
    assert opened(f"{tmp_path}/*", channels=0).info.image_shape == (6, 6, 3)
    batch = source.gather(np.asarray([10, 0, 5]))
    np.testing.assert_array_equal(batch["image"], IMAGES[[10, 0, 5]])
    np.testing.assert_array_equal(batch["label"], LABELS[[10, 0, 5]])
    batches = list(eval_batches(source, 4, threads=2))
    together = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(together[:11], IMAGES)


def test_the_documented_form_is_the_one_written(tmp_path: Path) -> None:
    from array_record.python import array_record_module

    path = tmp_path / "train.arrayrecord"
    write_arrayrecord(path, IMAGES[:2], [1, 0], num_classes=9)
    first, _ = array_record_module.ArrayRecordReader(str(path)).read_all()
    assert struct.unpack("<4sII", first[:12]) == (b"BIGR", 1, 9)
    with Image.open(io.BytesIO(first[12:])) as image:
        np.testing.assert_array_equal(np.asarray(image), IMAGES[0])


def test_encoded_images_are_stored_as_they_are_and_grey_is_read_back(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (200, 10, 10)).save(stream, "JPEG")
    write_arrayrecord(tmp_path / "train", [stream.getvalue(), IMAGES[0, ..., :1]], [0, 1])
    batch = opened(f"{tmp_path}/train").gather(np.arange(2))
    assert abs(batch["image"][0].astype(int) - [200, 10, 10]).max() <= 3
    np.testing.assert_array_equal(batch["image"][1], np.repeat(IMAGES[0, ..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("names", "glob"),
    [
        (("train.ar", "test.ar"), "*.ar"),
        (("my-train-0.ar", "my-VAL-0.ar"), "*"),
        (("training_train.ar", "train_set.validation.ar"), "*.ar"),
        (("train/0.ar", "test/0.ar"), "{split}/*"),
        (("a_train_0.ar", "a_val_0.ar"), "a_{split}_*"),
    ],
)
def test_files_are_split_by_name_or_placeholder(
    tmp_path: Path, names: tuple[str, str], glob: str
) -> None:
    for name, images in zip(names, (IMAGES[:8], IMAGES[8:]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_arrayrecord(tmp_path / name, images, [0] * len(images))
    if names[1].startswith("train_set"):
        (tmp_path / names[1]).rename(tmp_path / "a.validation.ar")
    parts = [opened(f"{tmp_path}/{glob}", split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [8, 3]


def test_a_glob_without_files_for_a_split_is_named(tmp_path: Path) -> None:
    write_arrayrecord(tmp_path / "train.ar", IMAGES, LABELS)
    write_arrayrecord(tmp_path / "mine.ar", IMAGES, LABELS)
    with pytest.raises(UserError, match=r"matches no file for split 'test': write \{split\} in"):
        opened(f"{tmp_path}/*.ar", "test")
    assert len(opened(f"{tmp_path}/*.ar")) == 11


def test_records_of_another_form_are_named(tmp_path: Path) -> None:
    from array_record.python import array_record_module

    def write(record: bytes) -> None:
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / "train"), "group_size:1")
        writer.write(record)
        writer.close()

    for foreign in (b"", b"BIGR", b"\x0a\x10" * 20):
        write(foreign)
        with pytest.raises(UserError, match="holds records of another form; write them with"):
            opened(f"{tmp_path}/train")
    write(struct.pack("<4sII", b"BIGR", 0, 1) + b"no image")
    with pytest.raises(UserError, match=r"none of the 1 examples .*; record 0 of .*, train cannot"):
        opened(f"{tmp_path}/train")
    (tmp_path / "train").write_bytes(b"no records at all")
    with pytest.raises(UserError, match=r"no records in .*train"):
        opened(f"{tmp_path}/train")
    write_arrayrecord(tmp_path / "train", [], [], num_classes=2)
    with pytest.raises(UserError, match=r"no records in .*train"):
        opened(f"{tmp_path}/train")


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_unreadable_images_are_replaced_by_the_next(
    tmp_path: Path, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(IMAGES[3], 9, 0), 9, 1)).save(whole, "JPEG")
    spoilt: list[np.ndarray | bytes] = list(IMAGES)
    spoilt[3], spoilt[10] = whole.getvalue()[:-200], b""
    write_arrayrecord(tmp_path / "train", spoilt, LABELS)
    source = opened(f"{tmp_path}/train", ram_limit=limit)
    batch = source.gather(np.asarray([10, 3, 9, 3]))
    np.testing.assert_array_equal(batch["image"], IMAGES[[0, 4, 9, 4]])
    np.testing.assert_array_equal(batch["label"], LABELS[[0, 4, 9, 4]])
    assert source.corrupt == 2
    for record in (3, 10):
        said = f"record {record} of arrayrecord:{tmp_path}/train, train cannot be read ("
        assert caplog.text.count(said) == 1


def test_labels_outside_the_classes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels reach from 0 to 3, of 3 classes"):
        write_arrayrecord(tmp_path / "train", IMAGES, LABELS, num_classes=3)


def test_a_missing_package_is_answered_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(UserError, match="needs array_record: pip install array_record"):
        opened("x")
