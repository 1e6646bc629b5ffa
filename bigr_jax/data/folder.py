"""A folder of the user's own images, a subfolder per class."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from bigr_jax.data.image import square
from bigr_jax.data.source import (
    ArraySource,
    Info,
    LazySource,
    Request,
    Source,
    in_threads,
    with_progress,
)
from bigr_jax.data.split import held_out
from bigr_jax.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_TEST_FRACTION = 0.1
_NAMED = 20


class _File(NamedTuple):
    path: Path
    label: int


def open_folder(request: Request) -> Source:
    """Returns a part of a folder of images, a subfolder per class, in memory where it fits.

    The folder holds class/*.png (or jpg, jpeg, webp, bmp, gif; deeper folders count), or train/ and
    test/ (or val/) that each do. Without a test folder, the tenth of each class whose paths hash
    lowest is the test part. Images are made upright, opaque on white, centre-cropped and scaled.
    Unreadable images are named in a warning and left out; a source that is decoded lazily checks
    only the files' headers beforehand. Raises UserError where the layout is another or nothing is
    left.
    """
    root, request = Path(request.argument).expanduser(), request.with_channels(3)
    names, files = _listing(root, request.split)
    info = Info(root.name, len(names), names, request.image_shape, "unknown", str(root))
    if not request.fits_in_memory(len(files)):
        files = [file for file, _ in _readable(files, _check_header, root)]
        return LazySource(files, partial(_read, request=request), info)
    decode = partial(_decode, size=request.size, channels=request.channels)
    examples = _readable(files, decode, root)
    labels = np.asarray([file.label for file, _ in examples], np.int32)
    return ArraySource(np.stack([image for _, image in examples]), labels, info)


def _listing(root: Path, split: str) -> tuple[tuple[str, ...], list[_File]]:
    train = root / "train" if (root / "train").is_dir() else root
    held = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    names, files = _classes(train)
    if train == root or held is None:
        paths = [file.path.relative_to(train).as_posix() for file in files]
        test = held_out(np.asarray([file.label for file in files]), paths, _TEST_FRACTION)
        chosen = test if split == "test" else ~test
        files = [file for file, take in zip(files, chosen, strict=True) if take]
    elif split == "test":
        there, files = _classes(held)
        unknown = sorted(set(there) - set(names))
        if unknown:
            raise UserError(f"{held} has classes that {train} lacks: {', '.join(unknown)}")
        files = [_File(file.path, names.index(there[file.label])) for file in files]
    if not files:
        raise UserError(f"{root} has no images for split {split!r}: give it a test folder")
    return names, files


def _classes(folder: Path) -> tuple[tuple[str, ...], list[_File]]:
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    classes = {child.name: _images_below(child) for child in children if child.name[0] != "."}
    names = tuple(name for name, paths in classes.items() if paths)
    if not names:
        state = "has no class folders with images" if folder.is_dir() else "is not a folder"
        raise UserError(
            f"data.source: {folder} {state}; expected {folder}/CLASS/*.png (or "
            f"{', '.join(_SUFFIXES[1:])}), or train/ and test/ folders that hold such classes"
        )
    files = [_File(path, label) for label, name in enumerate(names) for path in classes[name]]
    return names, files


def _images_below(folder: Path) -> list[Path]:
    found = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        found += [Path(place, name) for name in names if name[0] != "."]
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES)


def _check_header(path: Path) -> bool:
    with Image.open(path):
        return True


def _decode(path: Path, size: int, channels: int) -> np.ndarray:
    with Image.open(path) as image:
        return square(image, size, channels)


def _read(file: _File, request: Request) -> tuple[np.ndarray, int]:
    try:
        return _decode(file.path, request.size, request.channels), file.label
    except Exception as error:
        raise UserError(f"{file.path} cannot be read as an image ({error}); delete it") from error


def _readable(
    files: list[_File], attempt: Callable[[Path], Any], root: Path
) -> list[tuple[_File, Any]]:
    def guarded(file: _File) -> Any:
        try:
            return attempt(file.path)
        except Exception:  # Pillow's decoders raise many kinds: OSError, SyntaxError, struct.error.
            return None

    results = in_threads(guarded, files)
    results = with_progress(results, len(files), f"reading {len(files)} images of {root}")
    both = list(zip(files, results, strict=True))
    bad = [str(file.path) for file, result in both if result is None]
    if len(bad) == len(files):
        raise UserError(f"none of the {len(files)} images in {root} can be read")
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        logging.warning("unreadable, left out: %s%s", ", ".join(bad[:_NAMED]), more)
    return [(file, result) for file, result in both if result is not None]
