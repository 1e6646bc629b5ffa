"""The files in which codes of images are stored, eight bits to a byte.

A folder holds codes.json and, of every split, SPLIT-00003-of-00016.arrayrecord and the like, of
records without compression. A record is a head of seven little-endian numbers of four bytes: the
letters "BIGC", the version of this form, label, tokens N, bits K, number of classes, copy; then
ceil(N K / 8) bytes in the order of `bigr_jax.ops.packing`. The copies of an image lie one after
another: its draws, then those of its mirror image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigr_jax import files
from bigr_jax.data.source import Info
from bigr_jax.errors import UserError
from bigr_jax.ops.packing import packed_size

NAME = "codes.json"
_VERSION = 1
_MAGIC = int.from_bytes(b"BIGC", "little")
_HEAD = np.dtype(
    [(name, "<u4") for name in ("magic", "version", "label", "tokens", "bits", "classes", "copy")]
)
_FILE = re.compile(r"(train|test)-(\d{5})-of-(\d{5})\.arrayrecord")


class Split(NamedTuple):
    """One split: images, copies of each, and files, which hold equally many images but the last."""

    examples: int
    copies: int
    shards: int

    def rows(self, shard: int) -> range:
        """Returns the examples that a file holds."""
        each = -(-self.examples // self.shards)
        return range(shard * each, min((shard + 1) * each, self.examples))


class Codes(NamedTuple):
    """What a folder of codes is.

    info       of the images that were encoded
    tokens     N, of an image; bits: K, of a token
    tokenizer  fingerprint of the weights that encoded them
    draws      of every image of the training split; 0: the bits are rounded
    flip       whether the mirrored images of the training split are there too
    seed       of the draws
    splits     what there is of each
    """

    info: Info
    tokens: int
    bits: int
    tokenizer: str
    draws: int
    flip: bool
    seed: int
    splits: Mapping[str, Split]

    @property
    def width(self) -> int:
        """The bytes of an image's codes."""
        return packed_size(self.tokens, self.bits)


def array_record_module() -> Any:
    """Returns the package's reader and writer. Raises UserError where it is missing."""
    try:
        from array_record.python import array_record_module as module
    except ImportError as error:
        raise UserError("codes lie in ArrayRecord files: pip install array_record") from error
    return module


def write_description(folder: str | os.PathLike[str], codes: Codes) -> None:
    """Writes codes.json."""
    splits = {name: split._asdict() for name, split in codes.splits.items()}
    record = {**codes._asdict(), "info": codes.info._asdict(), "splits": splits}
    files.write_json(Path(folder) / NAME, {"format": _VERSION, **record})


def read_description(folder: str | os.PathLike[str]) -> Codes | None:
    """Returns what codes.json says, or None. Raises UserError where it is of another form."""
    path = Path(folder) / NAME
    try:
        found = files.read_json(path)
        if found is None:
            return None
        version = found.pop("format")
        info = found.pop("info")
        lists = {name: tuple(info[name]) for name in ("class_names", "image_shape")}
        splits = {name: Split(**split) for name, split in found.pop("splits").items()}
        codes = Codes(info=Info(**{**info, **lists}), splits=splits, **found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not what bigr encode writes: {error!r}") from None
    if version != _VERSION:
        raise UserError(f"{path} is of form {version}; this version reads form {_VERSION}")
    return codes


def shard_path(folder: str | os.PathLike[str], name: str, split: Split, shard: int) -> Path:
    """Returns the path of one file of the split called `name`."""
    return Path(folder) / f"{name}-{shard:05}-of-{split.shards:05}.arrayrecord"


def shard_paths(folder: Path, name: str, split: Split) -> list[Path]:
    """Returns the paths of all files of a split.

    Raises UserError where one is missing, or there are those of another run.
    """
    wanted = [shard_path(folder, name, split, shard) for shard in range(split.shards)]
    found = (path for path in folder.iterdir() if _FILE.fullmatch(path.name))
    there = {path for path in found if path.name.startswith(f"{name}-")}
    if strange := sorted(path.name for path in there.difference(wanted)):
        raise UserError(f"{folder} mixes the files of several runs of bigr encode: {strange[0]}")
    if missing := [path.name for path in wanted if path not in there]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {split.shards} files, {missing[0]} first; "
            "the bigr encode that began it goes on where it stopped"
        )
    return wanted


def write_shard(path: Path, batches: Iterable[tuple[np.ndarray, np.ndarray]], codes: Codes) -> None:
    """Writes one file, which appears whole or not at all.

    batches  packed codes uint8 [n, copies, ceil(N K / 8)] and labels int [n], in order
    """
    with files.whole(path) as part:
        writer = array_record_module().ArrayRecordWriter(part, "group_size:1,uncompressed")
        for packed, labels in batches:
            heads = np.zeros(packed.shape[:2], _HEAD)
            heads["magic"], heads["version"], heads["label"] = _MAGIC, _VERSION, labels[:, None]
            heads["tokens"], heads["bits"] = codes.tokens, codes.bits
            heads["classes"], heads["copy"] = codes.info.num_classes, np.arange(packed.shape[1])
            rows = np.concatenate([heads[..., None].view(np.uint8), packed], axis=-1)
            for row in rows.reshape(-1, rows.shape[-1]):
                writer.write(row.tobytes())
        writer.close()


def parse(records: list[bytes], codes: Codes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns packed codes uint8 [n, ceil(N K / 8)] and labels int32 [n] of records.

    where  they are from, for the UserError that a record of another form raises
    """
    size = _HEAD.itemsize + codes.width
    if wrong := [pair for pair in enumerate(map(len, records)) if pair[1] != size]:
        row, length = wrong[0]
        raise UserError(f"{where}, record {row}: {length} bytes, expected {size}")
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, size)
    heads = rows[:, : _HEAD.itemsize].copy().view(_HEAD)[:, 0]
    wanted = {"magic": _MAGIC, "version": _VERSION, "tokens": codes.tokens, "bits": codes.bits}
    for name, expected in {**wanted, "classes": codes.info.num_classes}.items():
        for row in np.flatnonzero(heads[name] != expected)[:1]:
            raise UserError(
                f"{where}, record {row}: {name} is {heads[name][row]}, {NAME} says {expected}"
            )
    return rows[:, _HEAD.itemsize :], heads["label"].astype(np.int32)
