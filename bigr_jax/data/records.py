"""ArrayRecord files of encoded images, read and written without TensorFlow.

A record is a 12-byte head, little-endian: the bytes "BIGR", the label and the number of classes,
both uint32; then the image as a PNG, JPEG or WebP file.
"""

from __future__ import annotations

import glob
import io
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from bigr_jax.data.image import as_image, square
from bigr_jax.data.source import Info, LazySource, Request, Source, in_memory
from bigr_jax.errors import UserError

_HEAD = struct.Struct("<4sII")
_MAGIC = b"BIGR"
_SPLIT_NAMES = {"train": ("train",), "test": ("test", "val", "validation")}
_INSTALL = "pip install array_record"


def write_arrayrecord(
    path: str | os.PathLike[str],
    images: Iterable[np.ndarray | bytes],
    labels: Iterable[int],
    num_classes: int | None = None,
) -> None:
    """Writes images, each uint8 [H, W, C] or the bytes of an image file, and their labels.

    Arrays are stored as PNG, so that reading gives the same values. Without num_classes it is one
    more than the largest label, which must then be the same in every file of a set.
    """
    from array_record.python import array_record_module

    labels = [int(label) for label in labels]
    classes = max(labels) + 1 if num_classes is None else num_classes
    if not all(0 <= label < classes for label in labels):
        raise ValueError(f"labels reach from {min(labels)} to {max(labels)}, of {classes} classes")
    # Groups of one record: random access decompresses a whole group.
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        encoded = image if isinstance(image, bytes) else _png(image)
        writer.write(_HEAD.pack(_MAGIC, label, classes) + encoded)
    writer.close()


def open_arrayrecord(request: Request) -> Source:
    """Returns the records of the files that a glob matches, in memory where they fit.

    `{split}` in the glob stands for train, or for test, val or validation; without it the files'
    names must hold one of these words. Raises UserError where no file matches or a record is not
    of this module's form, and as `LazySource` where images are unreadable.
    """
    try:
        from array_record.python import array_record_data_source
    except ImportError as error:
        raise UserError(f"data.source={request.source!r} needs array_record: {_INSTALL}") from error
    request = request.with_channels(3)
    paths = _paths(os.path.expanduser(request.argument), request)
    try:
        records = array_record_data_source.ArrayRecordDataSource(paths)
        first = records[0]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{request.source}: no records in {', '.join(paths)}: {error}") from error

    def decode(record: bytes) -> tuple[np.ndarray, int]:
        label, _, encoded = _parse(record, request)
        with Image.open(io.BytesIO(encoded)) as image:
            return square(image, request.size, request.channels), label

    classes = _parse(first, request)[1]
    names = tuple(str(label) for label in range(classes))
    name = Path(paths[0]).stem
    info = Info(name, classes, names, request.image_shape, "unknown", request.argument)
    place = f"{request.source}, {request.split}"
    source = LazySource(records, decode, info, lambda index: f"record {index} of {place}")
    return in_memory(source) if request.fits_in_memory(len(records)) else source


def _paths(pattern: str, request: Request) -> list[str]:
    words = _SPLIT_NAMES[request.split]
    for word in words:
        found = sorted(glob.glob(pattern.replace("{split}", word), recursive=True))
        if "{split}" not in pattern:
            name = re.compile(rf"(^|[^a-z]){word}([^a-z]|$)", re.IGNORECASE)
            found = [path for path in found if name.search(os.path.basename(path))]
        if found:
            return found
    raise UserError(
        f"data.source={request.source!r} matches no file for split {request.split!r}: write "
        f"{{split}} in the glob, or {' or '.join(words)} in the files' names"
    )


def _parse(record: bytes, request: Request) -> tuple[int, int, bytes]:
    if record[:4] != _MAGIC or len(record) < _HEAD.size:
        raise UserError(
            f"data.source={request.source!r} holds records of another form; "
            "write them with bigr_jax.data.records.write_arrayrecord"
        )
    _, label, classes = _HEAD.unpack_from(record)
    return label, classes, record[_HEAD.size :]


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    as_image(image).save(out, "PNG")
    return out.getvalue()
