"""How one published tensor corresponds to one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One row of a name table: a published PyTorch name, and where and how its values lie here.

    Several rows with one published name are its parts along the first axis, in the table's order.

    torch   name in the published state_dict
    path    path in the variables, e.g. ("params", "norm", "scale")
    layout  "same"; "linear": (out, in) <-> (in, out); "conv": OIHW <-> HWIO
    layer   index along the leading axis of a parameter stacked over layers; None: not stacked
    shape   the published shape, where it differs from ours by axes of length one or by a split
            axis, or of the part; None: as `layout` gives
    """

    torch: str
    path: tuple[str, ...]
    layout: str = "same"
    layer: int | None = None
    shape: tuple[int, ...] | None = None


UNUSED = "unused"


def unused(name: str, shape: tuple[int, ...]) -> Entry:
    """Returns the row of a published tensor that no computation reads, such as a head left behind.

    Its values travel in the collection "unused", so that the published file can be written back
    whole; zeros stand in for them when a model that was trained here is written.
    """
    return Entry(name, (UNUSED, *name.split(".")), shape=shape)


def published_shape(entry: Entry, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the published file of a parameter whose shape here is `ours`."""
    if entry.shape is not None:
        return entry.shape
    one = ours if entry.layer is None else ours[1:]
    if entry.layout == "same":
        return one
    if entry.layout == "linear" and len(one) == 2:
        return one[::-1]
    if entry.layout == "conv" and len(one) == 4:
        return (one[3], one[2], one[0], one[1])
    raise ValueError(f"{entry.torch}: layout {entry.layout!r} does not fit a parameter of {ours}")


def whole_shapes(
    entries: Sequence[Entry], shapes: Sequence[tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Returns {published name: shape} of the tensors whose parts, row by row, have `shapes`."""
    found: dict[str, tuple[int, ...]] = {}
    for entry, shape in zip(entries, shapes, strict=True):
        before = found.get(entry.torch)
        found[entry.torch] = (before[0] + shape[0], *shape[1:]) if before else shape
    return found


def spans(entries: Sequence[Entry], shapes: Sequence[tuple[int, ...]]) -> list[slice | None]:
    """Returns of every row the part that it has of its tensor's first axis; None: all of it."""
    whole, ends = whole_shapes(entries, shapes), dict.fromkeys((e.torch for e in entries), 0)
    found: list[slice | None] = []
    for entry, shape in zip(entries, shapes, strict=True):
        if shape == whole[entry.torch]:
            found.append(None)
            continue
        start = ends[entry.torch]
        ends[entry.torch] = start + shape[0]
        found.append(slice(start, start + shape[0]))
    return found


def inward(entry: Entry, value: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
    """Returns the published `value` laid out as the parameter (without the layers' axis)."""
    one = ours if entry.layer is None else ours[1:]
    if entry.layout == "linear":
        value = value.reshape(value.shape[0], -1).T
    elif entry.layout == "conv":
        value = value.transpose(2, 3, 1, 0)
    return value.reshape(one)


def outward(entry: Entry, value: np.ndarray) -> np.ndarray:
    """Returns the parameter `value` (with the layers' axis, if any) laid out as published."""
    shape = published_shape(entry, value.shape)
    one = value if entry.layer is None else value[entry.layer]
    if entry.layout == "linear":
        one = one.reshape(-1, shape[0]).T
    elif entry.layout == "conv":
        one = one.transpose(3, 2, 0, 1)
    return np.asarray(one, order="C").reshape(shape)
