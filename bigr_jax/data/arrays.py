"""A set in one .npz file of the user's own."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from bigr_jax.data.image import fit
from bigr_jax.data.source import ArraySource, Info, Request
from bigr_jax.data.split import held_out
from bigr_jax.errors import UserError

_IMAGES = ("image", "images", "x", "arr_0")
_LABELS = ("label", "labels", "y", "arr_1")
_TEST_FRACTION = 0.1


def open_npz(request: Request) -> ArraySource:
    """Returns a part of the arrays in a .npz file.

    Images are uint8 [N, H, W] or [N, H, W, C] (C 1, 3 or 4) under the name image, images, x or
    arr_0, labels are integers [N] under label, labels, y or arr_1; the names may end in _train and
    _test. Without a test part, the tenth of each class whose index hashes lowest is it. Raises
    UserError where the file or an array is missing or not of this form.
    """
    path = Path(request.argument).expanduser()
    arrays = _load(path)
    train = _pair(arrays, ("", "_train"), path)
    test = _pair(arrays, ("_test",), path)
    if train is None:
        raise UserError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected images under one of "
            f"{', '.join(_IMAGES)} and labels under one of {', '.join(_LABELS)}"
        )
    classes = 1 + max(int(part[1].max()) for part in (train, test) if part is not None)
    if test is None:
        mask = held_out(train[1], [str(index) for index in range(len(train[1]))], _TEST_FRACTION)
        train, test = (train[0][~mask], train[1][~mask]), (train[0][mask], train[1][mask])
    images, labels = train if request.split == "train" else test
    if not len(labels):
        raise UserError(f"{path} has no images for split {request.split!r}")
    request = request.with_channels(1 if train[0].shape[-1] == 1 else 3)
    names = tuple(str(label) for label in range(classes))
    info = Info(path.stem, classes, names, request.image_shape, "unknown", str(path))
    return ArraySource(fit(images, request.size, request.channels), labels, info)


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"data.source names {path}, and there is no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a .npz file of plain arrays: {error}") from error


def _pair(
    arrays: dict[str, np.ndarray], endings: tuple[str, ...], path: Path
) -> tuple[np.ndarray, np.ndarray] | None:
    images = _first(arrays, [name + end for end in endings for name in _IMAGES])
    labels = _first(arrays, [name + end for end in endings for name in _LABELS])
    if images is None or labels is None:
        return None
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (
        grey or (images.ndim == 4 and images.shape[-1] in (1, 3, 4))
    ):
        raise UserError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 [N, H, W] or "
            "[N, H, W, C] with 1, 3 or 4 channels, values 0 to 255"
        )
    if not len(images):
        raise UserError(f"{path} holds no images")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: labels are {labels.dtype} {labels.shape}, expected {len(images)} integers"
        )
    if labels.min() < 0:
        raise UserError(f"{path}: labels start at {labels.min()}, expected 0 to classes - 1")
    return images[..., None] if grey else images, labels


def _first(arrays: dict[str, np.ndarray], names: list[str]) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)
