"""How one published tensor corresponds to one parameter."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One row of a name table: a published PyTorch name, and where and how its values lie here.

    torch   name in the published state_dict
    path    path in the variables, e.g. ("params", "norm", "scale")
    layout  "same"; "linear": (out, in) <-> (in, out); "conv": OIHW <-> HWIO
    layer   index along the leading axis of a parameter that is stacked over layers; None: not stacked
    shape   the published shape, where it differs from ours by axes of length one or a split axis; None: as `layout` gives
    """

    torch: str
    path: tuple[str, ...]
    layout: str = "same"
    layer: int | None = None
    shape: tuple[int, ...] | None = None
