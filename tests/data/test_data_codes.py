"""Stored codes: what is written is read, from memory or from files, and mistakes are named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigr_jax.data import Info, eval_batches, open_source, train_batches
from bigr_jax.data.code_files import (
    Codes,
    Split,
    read_description,
    shard_path,
    write_description,
    write_shard,
)
from bigr_jax.data.codes import CodesSource
from bigr_jax.errors import UserError

pytest.importorskip("array_record", reason="array_record is not installed")

TOKENS, BITS, COPIES, EXAMPLES, SHARDS = 3, 5, 4, 11, 3
INFO = Info("pets", 4, ("ant", "bee", "cat", "dog"), (6, 6, 3), "none", "generated")
SPLITS = {"train": Split(EXAMPLES, COPIES, SHARDS), "test": Split(2, 1, 1)}
CODES = Codes(INFO, TOKENS, BITS, "f" * 64, 2, True, 7, SPLITS)

rng = np.random.default_rng(0)
BITS_OF = {
    name: rng.integers(0, 2, (split.examples, split.copies, TOKENS, BITS), np.uint8)
    for name, split in SPLITS.items()
}
LABELS = {"train": np.arange(EXAMPLES) % 4, "test": np.array([3, 2])}


def filled(folder: Path, codes: Codes = CODES) -> Path:
    """Writes the codes, in batches that do not divide the files."""
    folder.mkdir(exist_ok=True)
    write_description(folder, codes)
    for name, split in codes.splits.items():
        packed = np.packbits(BITS_OF[name].reshape(*BITS_OF[name].shape[:2], -1), axis=-1)
        for shard in range(split.shards):
            rows = split.rows(shard)
            parts = [rows[:2], rows[2:]] if len(rows) > 2 else [rows]
            batches = [(packed[list(part)], LABELS[name][list(part)]) for part in parts]
            write_shard(shard_path(folder, name, split, shard), batches, codes)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("codes"))


def opened(folder: Path, split: str = "train", **more: int) -> Any:
    section = {"source": f"codes:{folder}", "size": 6, "channels": 3, **more}
    return open_source(section, split)


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_written_is_read(folder: Path, split: str, limit: int) -> None:
    source = opened(folder, split, ram_limit=limit)
    examples, copies = SPLITS[split].examples, SPLITS[split].copies
    assert isinstance(source, CodesSource)
    assert (len(source), source.copies, source.info) == (examples, copies, INFO)
    wanted = np.random.default_rng(1).permutation(examples * copies)
    batch = source.gather(wanted)
    assert (batch["codes"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    bits = np.unpackbits(batch["codes"], axis=-1, count=TOKENS * BITS)
    expected = BITS_OF[split][wanted % examples, wanted // examples]
    np.testing.assert_array_equal(bits.reshape(-1, TOKENS, BITS), expected)
    np.testing.assert_array_equal(batch["label"], LABELS[split][wanted % examples])
    assert source.gather(wanted[:0])["codes"].shape == (0, 2)


def test_batches_from_memory_and_from_the_files_are_equal(folder: Path) -> None:
    pair = [train_batches(opened(folder, ram_limit=limit), 4, seed=3) for limit in (0, 1 << 30)]
    for _ in range(9):
        one, other = (next(batches) for batches in pair)
        assert one.keys() == {"codes", "label", "index", "mask"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["label"], LABELS["train"][one["index"]])
    for batches in pair:
        batches.close()
    (measured,) = eval_batches(opened(folder, "test"), 4)
    assert measured["codes"].shape == (4, 2)
    assert measured["mask"].tolist() == [1, 1, 0, 0]


def test_the_documented_form_is_the_one_written(folder: Path) -> None:
    from array_record.python import array_record_module

    assert sorted(path.name for path in folder.iterdir()) == [
        "codes.json",
        "test-00000-of-00001.arrayrecord",
        *(f"train-{shard:05}-of-00003.arrayrecord" for shard in range(3)),
    ]
    reader = array_record_module.ArrayRecordReader(str(folder / "train-00001-of-00003.arrayrecord"))
    records = reader.read_all()
    assert reader.writer_options_string().startswith("group_size:1,")
    # The second file begins with example 4; the sixth record is the third... of its copies.
    assert len(records) == 4 * COPIES
    head = struct.unpack("<4s6I", records[COPIES + 2][:28])
    assert head == (b"BIGC", 1, LABELS["train"][5], TOKENS, BITS, 4, 2)
    assert records[COPIES + 2][28:] == np.packbits(BITS_OF["train"][5, 2]).tobytes()
    assert read_description(folder) == CODES


def test_an_image_of_the_published_size_takes_768_bytes() -> None:
    assert CODES._replace(tokens=256, bits=24).width == 768


@pytest.mark.parametrize("examples", [1, 4, 5, 11, 16385])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_files_divide_the_examples(examples: int, shards: int) -> None:
    split = Split(examples, 1, min(shards, examples))
    rows = [index for shard in range(split.shards) for index in split.rows(shard)]
    assert rows == list(range(examples))


def changed(folder: Path, **values: Any) -> None:
    path = folder / "codes.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(folder: Path) -> None:
    path = folder / "train-00001-of-00003.arrayrecord"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shorter_records(folder: Path) -> None:
    from array_record.python import array_record_module

    path = folder / "train-00001-of-00003.arrayrecord"
    records = array_record_module.ArrayRecordReader(str(path)).read_all()
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for row, record in enumerate(records):
        writer.write(record[:-1] if row == 6 else record)
    writer.close()


def foreign_file(folder: Path) -> None:
    other = CODES._replace(tokens=5, bits=3)
    packed = np.zeros((4, COPIES, 2), np.uint8)
    write_shard(folder / "train-00001-of-00003.arrayrecord", [(packed, np.zeros(4, int))], other)


def copied(folder: Path) -> None:
    first, second = (folder / f"train-0000{shard}-of-00003.arrayrecord" for shard in (0, 2))
    second.write_bytes(first.read_bytes())


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (
        lambda folder: (folder / "codes.json").unlink(),
        r"has no codes\.json; fill it with: bigr encode --workdir=DIR --out=",
    ),
    "no json": (
        lambda folder: (folder / "codes.json").write_text("{"),
        r"codes\.json is not what bigr encode writes: JSONDecodeError",
    ),
    "other keys": (
        lambda folder: changed(folder, colour="red"),
        r"codes\.json is not what bigr encode writes: TypeError",
    ),
    "newer": (lambda folder: changed(folder, format=2), "is of form 2; this version reads form 1"),
    "no train": (
        lambda folder: changed(folder, splits={"test": SPLITS["test"]._asdict()}),
        "holds the split test; add the other with: bigr encode .* --split=train",
    ),
    "missing file": (
        lambda folder: (folder / "train-00001-of-00003.arrayrecord").unlink(),
        r"lacks 1 of 3 files, train-00001-of-00003\.arrayrecord first; the bigr encode that began",
    ),
    "mixed": (
        lambda folder: (folder / "train-00000-of-00009.arrayrecord").touch(),
        r"mixes the files of several runs of bigr encode: train-00000-of-00009\.arrayrecord",
    ),
    "cut file": (cut, "is damaged"),
    "cut record": (shorter_records, r"record (6|2)?.*: 29 bytes, expected 30"),
    "foreign file": (foreign_file, r"record \d+: tokens is 5, codes\.json says 3"),
    "copied file": (copied, r"holds (16|48) records, codes\.json says (12|44): it is damaged, or"),
}


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("name", MISTAKES)
def test_folders_of_another_form_are_named(tmp_path: Path, name: str, limit: int) -> None:
    spoil, words = MISTAKES[name]
    spoil(filled(tmp_path / "codes"))
    with pytest.raises(UserError, match=words) as caught:
        source = opened(tmp_path / "codes", ram_limit=limit)
        source.gather(np.arange(EXAMPLES * COPIES))
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_named(folder: Path) -> None:
    assert opened(folder, channels=0).info.image_shape == (6, 6, 3)
    with pytest.raises(UserError, match=r"data\.size=8, but .* holds codes of images with 6"):
        opened(folder, size=8)
    with pytest.raises(UserError, match=r"data\.channels=1, but .* holds codes of images with 3"):
        opened(folder, channels=1)
    with pytest.raises(UserError, match=r"has no codes\.json"):
        opened(folder / "elsewhere")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001.arrayrecord"

    def batches() -> Any:
        yield np.zeros((2, 1, 2), np.uint8), np.zeros(2, int)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(path, batches(), CODES)
    assert not path.exists()
    write_shard(path, [(np.zeros((2, 1, 2), np.uint8), np.zeros(2, int))], CODES)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
