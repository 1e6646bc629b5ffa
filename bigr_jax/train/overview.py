"""The parameters of a stage as a table, for params.txt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigr_jax.train import patterns

_HEAD = ("parameter", "shape", "dtype", "count", "names", "placement", "per device")
_NUMBERS = (1, 3, 6)


def table(variables: Any, shardings: Any = None) -> str:
    """Returns a line per variable and the totals of every collection and of all.

    variables  arrays or ShapeDtypeStructs, in linen's boxes where the axis names shall be shown
    shardings  a NamedSharding for every variable, for the last two columns: where it lies, and the
               bytes of its part on one device
    """
    boxes = jax.tree.leaves(variables, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
    leaves = jax.tree.leaves(nn.unbox(variables))
    places = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    names = patterns.paths(variables)
    rows = [
        (name, *_described(leaf), _named(box), _placed(place, leaf), _shown(_held(place, leaf)))
        for name, leaf, box, place in zip(names, leaves, boxes, places, strict=True)
    ]
    sizes = [(math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize) for leaf in leaves]
    held = [_held(place, leaf) for place, leaf in zip(places, leaves, strict=True)]
    return _aligned([_HEAD, *rows]) + "\n\n" + _totals(names, sizes, held)


def _described(leaf: Any) -> tuple[str, str, str]:
    shape = " x ".join(map(str, leaf.shape)) or "scalar"
    return shape, np.dtype(leaf.dtype).name, f"{math.prod(leaf.shape):,}"


def _named(box: Any) -> str:
    names = getattr(box, "names", None)
    return "" if names is None else ", ".join(name or "-" for name in names)


def _placed(sharding: Any, leaf: Any) -> str:
    if sharding is None:
        return ""
    spec = getattr(sharding, "spec", None)
    if spec is None or not any(spec):
        return "whole"
    share = math.prod(sharding.shard_shape(leaf.shape)) / max(math.prod(leaf.shape), 1)
    axes = ["+".join(a) if isinstance(a, tuple) else a or "-" for a in spec]
    return f"({', '.join(axes)}) 1/{round(1 / share)}"


def _held(sharding: Any, leaf: Any) -> int | None:
    """Returns the bytes that one device holds, None where that is not known."""
    if sharding is None:
        return None
    return math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def _shown(size: int | None) -> str:
    return "" if size is None else in_bytes(size)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    used = [column for column in range(len(_HEAD)) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}

    def cell(row: Sequence[str], column: int) -> str:
        width = widths[column]
        return row[column].rjust(width) if column in _NUMBERS else row[column].ljust(width)

    lines = [" | ".join(cell(row, column) for column in used).rstrip() for row in rows]
    rule = "-+-".join("-" * widths[column] for column in used)
    return "\n".join([lines[0], rule, *lines[1:]])


def _totals(
    names: Sequence[str], sizes: Sequence[tuple[int, int]], held: Sequence[int | None]
) -> str:
    groups: dict[str, list[tuple[int, int, int | None]]] = {}
    for name, (count, width), part in zip(names, sizes, held, strict=True):
        groups.setdefault(name.split("/", 1)[0], []).append((count, count * width, part))
    if len(groups) > 1:
        groups["total"] = [item for group in groups.values() for item in group]
    return "\n".join(f"{name}: {_total(group)}" for name, group in groups.items())


def _total(group: Sequence[tuple[int, int, int | None]]) -> str:
    size, parts = sum(item[1] for item in group), [item[2] for item in group]
    text = f"{sum(item[0] for item in group):,} in {len(group)} arrays, {in_bytes(size)}"
    if None in parts:
        return text
    return f"{text}, {in_bytes(sum(part or 0 for part in parts))} per device"


def in_bytes(size: float) -> str:
    """Returns a number of bytes with its unit, "24.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
