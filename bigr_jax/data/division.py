"""A training split in two: what is trained on, and what is held out of it.

Methods of two levels, which train weights on one part and what the weights depend on on the other,
find rows of both in every batch: those of the part that is held out under names that begin with
"held_".
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from bigr_jax.data.source import LazySource, Source
from bigr_jax.errors import UserError

PREFIX = "held_"
LEGAL = (
    "'HELD' or 'HELD:TRAIN', how much is held out and how much of the rest is trained on, each a "
    "number of examples or a share of the split as in '20%'"
)
_AMOUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?)(%?)")
# Where `data.order` has the number of an epoch, and `label_noise` a stream of its own.
_STREAM = 2**64 - 2
# An order of the same seed would run through both parts alike.
_APART = 2**63


class Held(NamedTuple):
    """What is held out of a source, of which a batch has one row for every `every` of its own."""

    source: Source
    every: int = 1

    def rows(self, size: int) -> int:
        """Returns how many rows a batch of `size` has. Raises UserError for a part of a row."""
        if size % self.every:
            raise UserError(
                f"data.held_every={self.every} does not divide a batch of {size} rows: it has one "
                "held out for every so many"
            )
        return size // self.every

    def seed(self, seed: int) -> int:
        """Returns the seed of the order in which it is seen."""
        return seed + _APART


class Part:
    """Some examples of a source, in a given order, as a source of their own.

    whole    the source; `places`, int64 [n], are indices of it
    held     what was held out for this part, if anything
    left     what is neither here nor held out, if anything
    """

    def __init__(
        self,
        whole: Source,
        places: np.ndarray,
        held: Held | None = None,
        left: Source | None = None,
    ) -> None:
        self.whole, self.info, self.held, self.left = whole, whole.info, held, left
        self.copies = getattr(whole, "copies", 1)
        self._places = places

    @property
    def corrupt(self) -> int:
        """How many examples of the whole stand in for others that could not be read."""
        return getattr(self.whole, "corrupt", 0)

    def __len__(self) -> int:
        return len(self._places)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of any n examples, see `Source`."""
        copy, example = np.divmod(np.asarray(indices), len(self))
        return self.whole.gather(self._places[example] + copy * len(self.whole))


class LazyPart(Part):
    """A part of a source whose examples are decoded when asked for, by the pipeline's threads."""

    whole: LazySource

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the image, uint8 [H, W, C], and the label of one example."""
        return self.whole.read(int(self._places[index]))


def divide(source: Source, text: str, every: int = 1) -> Source:
    """Returns the part to train on, whose `held` is what is held out; "" is the source itself.

    text   LEGAL; examples go by a fixed order that only their number decides, first those held out:
           "0:700" trains on the parts that "500:200" holds out and trains on, together
    every  of how many rows of a batch one is added that is held out

    Raises UserError where the text is not legal, or a part is more than there is, or empty.
    """
    if not text:
        return source
    held, kept = counts(text, len(source))
    if every < 1:
        raise UserError(f"data.held_every={every} must be 1 or more")
    # NumPy promises this raw stream for ever.
    bits = np.random.Philox(key=np.array([0, _STREAM], np.uint64))
    order = np.argsort(bits.random_raw(len(source)), kind="stable")
    part = LazyPart if isinstance(source, LazySource) else Part
    rest = order[held + kept :]
    other = Held(part(source, order[:held]), every) if held else None
    left = part(source, rest) if len(rest) else None
    return part(source, order[held : held + kept], other, left)


def counts(text: str, total: int) -> tuple[int, int]:
    """Returns how many of `total` examples are held out, and trained on; UserError as `divide`."""
    amounts = [_amount(part, text, total) for part in text.split(":")]
    if len(amounts) > 2:
        raise UserError(f"data.held_out={text!r} is not known; legal: {LEGAL}")
    held = amounts[0]
    kept = amounts[1] if len(amounts) > 1 else total - held
    if kept < 1 or held + kept > total:
        raise UserError(
            f"data.held_out={text!r} holds out {held} and trains on {kept} of {total} examples"
        )
    return held, kept


def _amount(part: str, text: str, total: int) -> int:
    match = _AMOUNT.fullmatch(part.strip())
    number = float(match[1].replace("_", "")) if match else -1.0
    share = bool(match and match[2])
    if not match or (share and number > 100) or not (share or number.is_integer()):
        raise UserError(f"data.held_out={text!r} is not known; legal: {LEGAL}")
    return round(number / 100 * total) if share else int(number)


def held_of(source: Source) -> Held | None:
    """Returns what is held out of a source that is trained on."""
    return getattr(source, "held", None)
