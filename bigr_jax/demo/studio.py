"""What the page asks of a model, value by value as a browser sends them, checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bigr_jax import inputs
from bigr_jax.demo import painting
from bigr_jax.errors import UserError
from bigr_jax.generate.editing import token_mask
from bigr_jax.model import Model

# What a picture may be asked for at once, and how far a browser counts exactly enough.
MOST, SEEDS = 64, 2**31 - 1
COMPILING = "Compiling: the first picture of a new setting takes a while …"
DRAWING = "Drawing …"


class Shown(NamedTuple):
    """Pictures to show, uint8 [H, W, C] with a caption each, and a line about them; None: the
    pictures are still to come.
    """

    pictures: list[tuple[np.ndarray, str]] | None
    line: str


class Studio:
    """Draws what the page asks for.

    Methods that draw first yield what is being done, then the pictures. Values may be anything that
    a browser sends, None for an emptied field; they raise UserError for those that make no sense.
    So does making one of a model that draws texts, not classes.
    """

    def __init__(self, model: Model) -> None:
        if model.generator.net.text:
            raise UserError("this model draws what texts describe; the page is for classes")
        self.model = model
        self._compiled: set[Any] = set()

    def draw(
        self, label: Any, count: Any, seed: Any, sampling: Mapping[str, Any]
    ) -> Iterator[Shown]:
        """Yields pictures of a class.

        sampling  fields of `generate.masked.MaskedSampling`
        """
        label, count = self._label(label, "class"), whole("pictures", count, 1, MOST)
        seed, how = _seed(seed), numbers(sampling)

        def act() -> Shown:
            found = self.model.sample([label] * count, seed=seed, **how)
            return Shown([(painting.coloured(image), "") for image in found], "")

        what = f"{_counted(count)} of {self._name(label)}, seed {seed}"
        yield from self._timed(("draw", _padded(count), *how.items()), act, what)

    def one(self, label: Any, seed: Any) -> Iterator[Shown]:
        """Yields one picture of a class to paint on, as the model has it."""
        label, seed = self._label(label, "class"), _seed(seed)

        def act() -> Shown:
            return Shown([(self.model.sample(label, seed=seed)[0], "")], "")

        yield from self._timed(("one",), act, f"A picture of {self._name(label)}, seed {seed}")

    def opened(self, path: str) -> np.ndarray:
        """Returns the picture of a file as the model takes it, uint8 [size, size, channels].

        Raises UserError for a file that is no picture.
        """
        try:
            with Image.open(path) as image:
                return inputs.pictures(image, self.model.size, self.model.channels).pixels[0]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise UserError("the file is no picture that can be read") from None

    def edit(
        self,
        image: np.ndarray | None,
        layers: Sequence[np.ndarray],
        label: Any,
        count: Any,
        seed: Any,
        blend: bool,
        outside: bool,
    ) -> Iterator[Shown]:
        """Yields the picture, what of it is drawn anew, and the results.

        image    uint8 [size, size, channels], or None where there is none yet
        layers   what was painted, see `painting.painted`
        label    the class to draw, None for what suits
        outside  all but what was painted is drawn anew
        """
        if image is None:
            raise UserError("there is no picture yet; upload one, or draw one")
        mask = painting.painted(layers, self.model.size)
        if not mask.any():
            raise UserError("nothing is painted yet; paint over a part of the picture")
        label = None if label is None else self._label(label, "class")
        count, seed = whole("pictures", count, 1, MOST), _seed(seed)
        tokens = token_mask(mask != outside, self.model.generator.net.grid)

        def act() -> Shown:
            draw = self.model.outpaint if outside else self.model.inpaint
            found = draw(image, mask, label=label, samples=count, seed=seed, blend=bool(blend))
            before = [(painting.coloured(image), "before")]
            before.append((painting.tinted(image, mask != outside), "drawn anew"))
            after = [f"after {number}" for number in range(1, count + 1)]
            return Shown([*before, *zip(map(painting.coloured, found), after, strict=True)], "")

        whose = "whatever suits" if label is None else self._name(label)
        what = f"{tokens.sum()} of {tokens.size} tokens drawn anew as {whose}, seed {seed}"
        yield from self._timed(("edit", _padded(count), label is None), act, what)

    def mix(self, first: Any, second: Any, steps: Any, seed: Any) -> Iterator[Shown]:
        """Yields pictures on the way from one class to another."""
        first, second = self._label(first, "first class"), self._label(second, "second class")
        steps, seed = whole("steps", steps, 2, MOST), _seed(seed)

        def act() -> Shown:
            found = self.model.interpolate(first, second, steps=steps, seed=seed)[0]
            shares = [f"{share:.0%}" for share in np.linspace(0, 1, steps)]
            return Shown(list(zip(map(painting.coloured, found), shares, strict=True)), "")

        what = f"From {self._name(first)} to {self._name(second)}, seed {seed}"
        yield from self._timed(("mix", _padded(steps)), act, what)

    def _timed(self, program: tuple[Any, ...], act: Callable[[], Shown], what: str) -> Any:
        yield Shown(None, DRAWING if program in self._compiled else COMPILING)
        start = time.monotonic()
        shown = act()
        self._compiled.add(program)
        yield shown._replace(line=f"{what}: {time.monotonic() - start:.1f} s")

    def _label(self, given: Any, name: str) -> int:
        if given is None:
            raise UserError(f"{name}: none is chosen")
        return inputs.label(given, self.model.class_names, name)

    def _name(self, label: int) -> str:
        return f"“{self.model.class_names[label]}”"


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Returns a whole number. Raises UserError for anything else, and outside least to most."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not least <= value <= most or value != int(value):
        shown = "nothing" if value is None else value
        raise UserError(f"{name}: {shown}; legal: whole numbers from {least} to {most}")
    return int(value)


def numbers(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings of the sampler of which none is empty; UserError names one that is."""
    for name, value in sampling.items():
        if value is None:
            raise UserError(f"{name.replace('_', ' ')}: nothing; give a number")
    return dict(sampling)


def _seed(value: Any) -> int:
    return whole("seed", value, 0, SEEDS)


def _padded(count: int) -> int:
    """What a program is compiled for: the power of two that holds so many pictures."""
    return 1 << (count - 1).bit_length()


def _counted(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
