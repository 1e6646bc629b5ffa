"""Data that are not on this machine, as far as their shapes go, for what needs no more of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bigr_jax.data.described import Described
from bigr_jax.data.division import Held, counts
from bigr_jax.data.opening import open_source
from bigr_jax.data.source import Source
from bigr_jax.errors import UserError

# Classes, and examples of each split, of sets of the published settings, from their publications.
SETS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "tfds:imagenet2012": (1000, {"train": 1_281_167, "test": 50_000}),
    "tfds:cifar10": (10, {"train": 50_000, "test": 10_000}),
    "tfds:cifar100": (100, {"train": 50_000, "test": 10_000}),
}
# What holds images and labels, or tokens, alone; captions and codes have shapes that only their
# files tell.
PLAIN = ("folder", "npz", "arrayrecord", "tfds", "tokens", "interactions", "glue")
# Those of them that hold no images.
SEQUENCES = ("tokens", "interactions", "glue")


def open_or_describe(section: Any, split: str) -> Source:
    """Returns the source that a config section names, see `open_source`; where its data are not
    here, one of which the shapes alone are known.

    Those are taken from `SETS`, else from the section's channels, num_classes and examples. Raises
    UserError, naming these keys, where neither tells them, and of a source that is no plain set of
    images or tokens.
    """
    try:
        return open_source(section, split)
    except UserError as error:
        return _described(section, split, error)


def _described(section: Any, split: str, error: UserError) -> Described:
    name = section.source
    scheme = name.partition(":")[0]
    if scheme not in PLAIN:
        raise error
    classes, examples = SETS.get(name.removesuffix("/"), (0, {}))
    found = {
        # Of images that nobody has looked at, as `open_source` does.
        "channels": section.channels or (3 if classes else int(scheme in SEQUENCES)),
        "num_classes": getattr(section, "num_classes", 0) or classes,
        "examples": getattr(section, "examples", 0) or examples.get(split, 0),
    }
    if split == "test" and examples:
        found["examples"] = examples[split]
    division = getattr(section, "held_out", "") if split == "train" else ""
    if division and not getattr(section, "examples", 0) and found["examples"]:
        found["examples"] = counts(division, found["examples"])[1]
    if missing := [f"--config.data.{key}=..." for key, value in found.items() if not value]:
        raise UserError(
            f"{error}. To go on without the data, say what they are: {' '.join(missing)}"
        ) from None

    size, count = section.size, found["num_classes"]
    shape = [size, size, found["channels"]]
    columns = {"image": [shape, "uint8"], "label": [[], "int32"]}
    if scheme in SEQUENCES:
        shape, columns = [size], {"tokens": [[size], "int32"]}
    if scheme == "interactions":
        columns |= {"seen": [[-(-count // 8)], "uint8"], "part": [[], "int32"]}
    if scheme == "glue":
        columns |= {"types": [[size], "int32"], "label": [[], "int32"]}
    if getattr(section, "noise", "") and split == "train":
        columns["clean"] = [[], "int32"]
    record = {
        "info": {
            "name": name,
            "num_classes": count,
            "class_names": [str(label) for label in range(0 if scheme in SEQUENCES else count)],
            "image_shape": shape,
            "licence": "unknown",
            "origin": name,
        },
        "examples": found["examples"],
        "spec": columns,
    }
    described = Described(record, functools.partial(open_source, section, split))
    # How many are held out is nobody's concern who does not see them.
    if division and counts(division, 1 << 40)[0]:
        held = Described(record, functools.partial(open_source, section, "held"))
        described.held = Held(held, getattr(section, "held_every", 1))
    return described
