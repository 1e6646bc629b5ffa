"""What a work directory remembers of its data, so that a trained model is used without them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigr_jax.data.division import Held, Part
from bigr_jax.data.source import Info, Source

Spec = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def spec(source: Source) -> Spec:
    """Returns {name: (shape, dtype)} of the columns of one example.

    "image" is among them even where the examples hold its codes instead, but not of sequences and
    of maps of features.
    """
    if isinstance(source, Part):
        return spec(source.whole)
    if isinstance(source, Described):
        return source.spec
    row = source.gather(np.arange(1))
    pictured = {"tokens", "features"}.isdisjoint(row)
    image = {"image": (source.info.image_shape, np.dtype(np.uint8))} if pictured else {}
    return {**image, **{name: (value.shape[1:], value.dtype) for name, value in row.items()}}


def describe(source: Source) -> dict[str, Any]:
    """Returns, for JSON, what `Described` takes."""
    return {
        "info": source.info._asdict(),
        "examples": len(source),
        "spec": {name: [list(shape), kind.name] for name, (shape, kind) in spec(source).items()},
    }


class Described:
    """A source of which all is known but the examples; those are opened when they are asked for.

    record  of `describe`
    opener  () -> the source itself; it may raise UserError where the data are not there
    held    see `data.division`
    """

    def __init__(
        self, record: Mapping[str, Any], opener: Callable[[], Source], held: Held | None = None
    ) -> None:
        self.held = held
        lists = ("class_names", "image_shape")
        fields = {**record["info"], **{name: tuple(record["info"][name]) for name in lists}}
        self.info = Info(**fields)
        self.spec: Spec = {
            name: (tuple(shape), np.dtype(kind)) for name, (shape, kind) in record["spec"].items()
        }
        self._examples = int(record["examples"])
        self._opener = opener

    def __len__(self) -> int:
        return self._examples

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of any n examples, see `Source`."""
        return self._opened.gather(indices)

    @functools.cached_property
    def _opened(self) -> Source:
        return self._opener()
