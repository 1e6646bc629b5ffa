"""Sets that tensorflow-datasets prepared, read without TensorFlow and without a network."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigr_jax.data.image import as_image, square
from bigr_jax.data.source import Info, LazySource, Request, Source, in_memory
from bigr_jax.errors import UserError

_INSTALL = "pip install tensorflow-datasets array_record importlib_resources"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def open_tfds(request: Request) -> Source:
    """Returns a split of a prepared set NAME, NAME/CONFIG or NAME:VERSION, in memory where it fits.

    Looks below data.data_dir, else the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets, and
    never downloads. "test" is the split test where its labels are known, else validation, else the
    last tenth of train (which "train" then lacks). Encoded images are decoded by Pillow whatever
    else is installed, so that the values are the same everywhere. Raises UserError where the set is
    not prepared as ArrayRecord, or has no image and label features, and as `LazySource` where
    images are unreadable.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"data.source={request.source!r} needs a package: {_INSTALL}") from error
    # A folder is opened, not a name: opening by name may look for the set on the network.
    folder = _folder(request)
    try:
        builder = tfds.builder_from_directory(folder, file_format="array_record")
    except Exception as error:  # Its own DatasetInfoFileError, or ValueError for another format.
        raise UserError(f"{folder} is not readable: {error}; {_how(request)}") from error
    image_key, label_key = _keys(builder.info, request)
    feature = builder.info.features[image_key]
    grey = len(feature.shape) == 2 or feature.shape[-1] == 1
    request = request.with_channels(1 if grey else 3)
    encoded = isinstance(feature, tfds.features.Image)
    decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None

    def records_of(split: str) -> Any:
        return builder.as_data_source(split=split, decoders=decoders)

    split = _split(builder.info.splits, records_of, label_key, request)
    records = records_of(split)
    if not len(records):
        raise UserError(f"data.source={request.source!r}: {folder} has an empty {request.split}")

    def decode(record: dict[str, Any]) -> tuple[np.ndarray, int]:
        image, label = record[image_key], int(record[label_key])
        if not encoded:
            pixels = np.asarray(image)
            image = as_image(pixels if pixels.ndim == 3 else pixels[..., None])
            return square(image, request.size, request.channels), label
        with Image.open(io.BytesIO(image)) as opened:
            return square(opened, request.size, request.channels), label

    names = tuple(builder.info.features[label_key].names)
    licence = builder.info.redistribution_info.license or "unknown"
    name = builder.info.full_name
    info = Info(name, len(names), names, request.image_shape, licence, str(folder))
    source = LazySource(
        records, decode, info, lambda index: f"record {index} of {split} in {folder}"
    )
    return in_memory(source) if request.fits_in_memory(len(records)) else source


def _how(request: Request) -> str:
    return (
        "prepare it once, where there are a network and TensorFlow, with: "
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({request.argument!r}, data_dir={str(_data_dir(request))!r}, "
        "file_format='array_record').download_and_prepare()"
    )


def _data_dir(request: Request) -> Path:
    given = request.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser()


def _folder(request: Request) -> Path:
    name, _, version = request.argument.partition(":")
    place = _data_dir(request) / name
    found = {child.name: child for child in place.glob("*") if (child / "features.json").is_file()}
    numbers = [number for number in found if _VERSION.fullmatch(number)]
    if version in found:
        return found[version]
    if numbers and not version:
        return found[max(numbers, key=lambda number: tuple(map(int, number.split("."))))]
    configs = sorted({path.parents[1].name for path in place.glob("*/*/features.json")})
    if numbers:
        state = f"has version {', '.join(sorted(numbers))}"
    elif configs:
        state = f"has configs, name one: tfds:{name}/{configs[0]} (of {', '.join(configs)})"
    else:
        state = f"is not prepared; {_how(request)}"
    raise UserError(f"data.source={request.source!r}: {place} {state}")


def _keys(info: Any, request: Request) -> tuple[str, str]:
    features, keys = dict(info.features), info.supervised_keys
    if not (isinstance(keys, tuple) and len(keys) == 2 and all(key in features for key in keys)):
        keys = ("image", "label")
    image, label = features.get(keys[0]), features.get(keys[1])
    if (
        image is None
        or image.np_dtype != np.uint8
        or len(image.shape) not in (2, 3)
        or not hasattr(label, "names")
    ):
        raise UserError(
            f"data.source={request.source!r} has features {', '.join(features)}; expected "
            f"{keys[0]} (uint8 images) and {keys[1]} (a ClassLabel)"
        )
    return keys


def _split(splits: Any, records_of: Callable[[str], Any], label_key: str, request: Request) -> str:
    if "train" not in splits:
        raise UserError(f"data.source={request.source!r} has splits {', '.join(splits)}, no train")
    held = next((name for name in ("test", "validation") if name in splits), None)
    # The test split of a competition, ImageNet's say, has labels -1.
    if held == "test" and "validation" in splits:
        first = records_of("test[:1]")
        if len(first) and int(first[0][label_key]) < 0:
            held = "validation"
    if request.split == "test":
        return held or "train[90%:]"
    return "train" if held else "train[:90%]"
