"""Files of images and of reference statistics, as the evaluator of guided-diffusion has them.

One npz holds "arr_0", uint8 images [n, height, width, 3], or the statistics "mu" and "sigma" of
their 2048 pooled features and "mu_s" and "sigma_s" of their 2023 spatial ones, or both.
Source: github.com/openai/guided-diffusion, evaluations.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bigr_jax.errors import UserError
from bigr_jax.metrics.frechet import Moments

IMAGES, MADE = "arr_0", "made_json"
_POOL, _SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")
_BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError)


class Images:
    """The images of an npz, read a batch at a time, since 50 000 need not fit in memory.

    Raises UserError where the file holds none that are uint8 [n, height, width, 1 or 3].
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as member:
                shape, by_columns, kind = _header(member)
        except _BROKEN as error:
            raise UserError(f"{path} has no images {IMAGES!r} to read: {error}") from None
        if len(shape) == 3:
            shape = (*shape, 1)
        if kind != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or by_columns:
            raise UserError(
                f"{IMAGES!r} in {path} is {kind} {shape}; legal: uint8 [n, height, width, 1 or 3]"
            )
        self.shape: tuple[int, ...] = shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yields uint8 [size, height, width, 3], fewer in the last; grey becomes three channels.

        Raises UserError where the file ends too early.
        """
        each = int(np.prod(self.shape[1:]))
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as member:
            _header(member)
            for start in range(0, len(self), size):
                rows = min(size, len(self) - start)
                raw = member.read(rows * each)
                if len(raw) != rows * each:
                    raise UserError(f"{self.path} ends within image {start + len(raw) // each}")
                found = np.frombuffer(raw, np.uint8).reshape(rows, *self.shape[1:])
                yield three_channels(found)


class Reference(NamedTuple):
    """What images are compared with; None for what a file lacks.

    pool     moments of the 2048 features after the last pool
    spatial  moments of the 2023 features of sFID
    images   some of them or all
    """

    pool: Moments | None
    spatial: Moments | None
    images: Images | None


def read_reference(path: str) -> Reference:
    """Returns what an npz of images, of statistics or of both holds.

    Raises UserError for a missing or broken file, one with neither, and statistics that are none.
    """
    _check_there(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            found = {k: archive[k] for k in (*_POOL, *_SPATIAL) if k in names}
    except _BROKEN as error:
        raise UserError(f"{path} cannot be read as npz: {error}") from None
    if IMAGES not in names and not names.issuperset(_POOL):
        listed = ", ".join(sorted(names)) or "nothing"
        raise UserError(
            f"{path} is no reference: it holds {listed}; legal: {IMAGES!r}, or 'mu' and 'sigma' "
            "and, for sFID, 'mu_s' and 'sigma_s'"
        )
    images = Images(path) if IMAGES in names else None
    return Reference(_moments(path, found, _POOL), _moments(path, found, _SPATIAL), images)


def read_images(path: str) -> Images:
    """Returns the images of an npz. Raises UserError for a missing file and as `Images` does."""
    _check_there(path)
    return Images(path)


def read_made(path: str) -> Any:
    """Returns the JSON value that `write` was told the file is made of; None where there is none,
    or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(bytes(archive[MADE])) if MADE in archive.files else None
    except _BROKEN:
        return None


def statistics(pool: Moments, spatial: Moments | None) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of statistics, by name."""
    found = dict(zip(_POOL, (pool.mean, pool.covariance), strict=True))
    if spatial is not None:
        found |= dict(zip(_SPATIAL, (spatial.mean, spatial.covariance), strict=True))
    return found


def write(path: str, arrays: Mapping[str, np.ndarray], made: Any) -> None:
    """Writes an npz through a temporary file, with a JSON value that says what it is made of."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    text = np.frombuffer(json.dumps(made).encode(), np.uint8)
    members: dict[str, Any] = {**arrays, MADE: text}
    with open(path + ".new", "wb") as stream:
        np.savez(stream, **members)
    os.replace(path + ".new", path)


def three_channels(images: np.ndarray) -> np.ndarray:
    """Returns images [n, height, width, 1 or 3] with three channels, equal ones where grey."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    form = np.lib.format
    old = form.read_magic(member) == (1, 0)
    return (form.read_array_header_1_0 if old else form.read_array_header_2_0)(member)


def _check_there(path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"file {path!r} does not exist")


def _moments(path: str, found: Mapping[str, np.ndarray], names: tuple[str, str]) -> Moments | None:
    if not all(name in found for name in names):
        return None
    mean, covariance = (np.asarray(found[name], np.float64) for name in names)
    size = mean.size
    if mean.ndim != 1 or covariance.shape != (size, size):
        raise UserError(
            f"{names[0]!r} {mean.shape} and {names[1]!r} {covariance.shape} in {path} are no "
            "mean [D] and covariance [D, D]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{names[0]!r} or {names[1]!r} in {path} is not finite")
    return Moments(mean, covariance, 0)
