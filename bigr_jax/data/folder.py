"""A folder of the user's own images, a subfolder per class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bigr_jax.data.image import square
from bigr_jax.data.source import Info, LazySource, Request, Source, in_memory
from bigr_jax.data.split import held_out
from bigr_jax.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_TEST_FRACTION = 0.1


class _File(NamedTuple):
    path: str
    label: int


def open_folder(request: Request) -> Source:
    """Returns a part of a folder of images, a subfolder per class, in memory where it fits.

    The folder holds class/*.png (or jpg, jpeg, webp, bmp, gif; deeper folders count), or train/ and
    test/ (or val/) that each do. Without a test folder, the tenth of each class whose paths hash
    lowest is the test part. Images are made upright, opaque on white, centre-cropped and scaled.
    Raises UserError where the layout is another, and as `LazySource` where images are unreadable.
    """
    root, request = Path(request.argument).expanduser(), request.with_channels(3)
    names, files = _listing(root, request.split)
    info = Info(root.name, len(names), names, request.image_shape, "unknown", str(root))

    def decode(file: _File) -> tuple[np.ndarray, int]:
        with Image.open(file.path) as image:
            return square(image, request.size, request.channels), file.label

    source = LazySource(files, decode, info, lambda index: files[index].path)
    return in_memory(source) if request.fits_in_memory(len(files)) else source


def _listing(root: Path, split: str) -> tuple[tuple[str, ...], list[_File]]:
    train = root / "train" if (root / "train").is_dir() else root
    held = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    names, files = _classes(train)
    if train == root or held is None:
        paths = [Path(file.path).relative_to(train).as_posix() for file in files]
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


def _images_below(folder: Path) -> list[str]:
    found = []
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        found += [
            os.path.join(place, name)
            for name in names
            if name[0] != "." and name.lower().endswith(_SUFFIXES)
        ]
    return sorted(found, key=lambda path: path.split(os.sep))
