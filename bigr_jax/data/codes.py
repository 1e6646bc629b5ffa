"""Codes that `bigr encode` stored, as a source to train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigr_jax.data import code_files
from bigr_jax.data.code_files import NAME, Codes
from bigr_jax.data.source import Request, in_threads, with_progress
from bigr_jax.errors import UserError

# rows, int64 [n] -> packed codes uint8 [n, ceil(N K / 8)], labels int32 [n]
_Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class CodesSource:
    """The codes of a split, with random access.

    folder  where they lie; codes: what it is
    copies  of every image; index i + c len(self) asks for copy c of example i
    """

    def __init__(self, folder: Path, codes: Codes, split: str, read: _Read) -> None:
        self.folder, self.codes, self.info = folder, codes, codes.info
        self.copies = codes.splits[split].copies
        self._examples, self._read = codes.splits[split].examples, read

    def __len__(self) -> int:
        return self._examples

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"codes": uint8 [n, ceil(N K / 8)], "label": int32 [n]} of any n indices.

        The bits are in the order of `bigr_jax.ops.packing`, which unpacks them on the device.
        """
        copy, example = np.divmod(np.asarray(indices, np.int64), self._examples)
        packed, labels = self._read(example * self.copies + copy)
        return {"codes": packed, "label": labels}


def open_codes(request: Request) -> CodesSource:
    """Returns a split of a folder that `bigr encode` filled, in memory where it fits.

    Raises UserError where codes.json, the split or files are missing, where files of several runs
    are mixed, where the images were of another size, and where a record is of another form.
    """
    folder = Path(request.argument).expanduser()
    codes, name = _described(request, folder), request.split
    split = codes.splits[name]
    paths = code_files.shard_paths(folder, name, split)
    if split.examples * split.copies * codes.width <= request.ram_limit:
        packed, labels = _everything(codes, name, paths, folder)
        return CodesSource(folder, codes, name, lambda rows: (packed[rows], labels[rows]))
    return CodesSource(folder, codes, name, _lazily(codes, name, paths, folder))


def _described(request: Request, folder: Path) -> Codes:
    codes = code_files.read_description(folder)
    if codes is None:
        raise UserError(
            f"data.source={request.source!r}: {folder} has no {NAME}; fill it with: "
            f"bigr encode --workdir=DIR --out={folder}"
        )
    if request.split not in codes.splits:
        raise UserError(
            f"data.source={request.source!r} holds the split {', '.join(codes.splits)}; add the "
            f"other with: bigr encode --workdir=DIR --out={folder} --split={request.split}"
        )
    height, _, channels = codes.info.image_shape
    pairs = {"size": (request.size, height), "channels": (request.channels, channels)}
    for key, (given, there) in pairs.items():
        if given not in (0, there):
            raise UserError(f"data.{key}={given}, but {folder} holds codes of images with {there}")
    return codes


def _everything(
    codes: Codes, name: str, paths: list[Path], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    module, split = code_files.array_record_module(), codes.splits[name]
    packed = np.empty((split.examples * split.copies, codes.width), np.uint8)
    labels = np.empty(len(packed), np.int32)

    def read(shard: int) -> None:
        path, rows = paths[shard], split.rows(shard)
        reader = _guarded(lambda: module.ArrayRecordReader(str(path)), path)
        _check_count(reader.num_records(), len(rows) * split.copies, path)
        found = _guarded(reader.read_all, path)
        reader.close()
        here = slice(rows.start * split.copies, rows.stop * split.copies)
        packed[here], labels[here] = code_files.parse(found, codes, str(path))

    done = in_threads(read, range(split.shards))
    for _ in with_progress(done, split.shards, f"reading the codes in {folder}, {name}"):
        pass
    return packed, labels


def _lazily(codes: Codes, name: str, paths: list[Path], folder: Path) -> _Read:
    code_files.array_record_module()
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    split, places = codes.splits[name], [str(path) for path in paths]
    records: Any = _guarded(lambda: ArrayRecordDataSource(places), folder)
    _check_count(len(records), split.examples * split.copies, folder)

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = rows.tolist()
        # The package refuses to read nothing.
        found = _guarded(lambda: records.__getitems__(wanted), folder) if wanted else []
        return code_files.parse(found, codes, f"{folder}, records {wanted[:3]} and on")

    return read


def _check_count(found: int, expected: int, where: Path) -> None:
    if found != expected:
        raise UserError(
            f"{where} holds {found} records, {NAME} says {expected}: it is damaged, or of another "
            "run of bigr encode"
        )


def _guarded(read: Callable[[], Any], where: Path) -> Any:
    try:
        return read()
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise UserError(f"{where} is damaged: {error}") from error
