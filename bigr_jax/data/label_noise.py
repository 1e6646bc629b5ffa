"""Training labels that are wrong on purpose, with the true ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bigr_jax.data.source import Source
from bigr_jax.errors import UserError

KINDS = ("symmetric", "asymmetric")
LEGAL = "symmetric:RATE or asymmetric:RATE, rate in [0, 1], with :SEED behind it where it is not 0"
# Of CIFAR-10, which classes are taken for which (Patrini et al., arXiv 1609.03683).
CIFAR10 = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}
CIFAR10_NAMES = {*CIFAR10, "automobile", "airplane", "horse", "frog", "ship"}
# Where `data.order` has the number of an epoch: by the same numbers, an epoch would begin with the
# wrong labels.
_STREAM = 2**64 - 1


class Noise(NamedTuple):
    """What a `data.noise` says: one of KINDS, the share of labels that it strikes, and a seed."""

    kind: str
    rate: float
    seed: int = 0


def parse(text: str) -> Noise:
    """Returns what a `data.noise` says. Raises UserError where it is not legal."""
    kind, *rest = text.split(":")
    try:
        rate, seed = float(rest[0]), int(rest[1]) if len(rest) > 1 else 0
    except (ValueError, IndexError):
        rate, seed = -1.0, 0
    if kind not in KINDS or len(rest) > 2 or not 0 <= rate <= 1 or seed < 0:
        raise UserError(f"data.noise={text!r} is not known; legal: {LEGAL}")
    return Noise(kind, rate, seed)


def confused(names: Sequence[str]) -> np.ndarray:
    """Returns the class for which each is taken by asymmetric noise, int32 [classes].

    Those of CIFAR-10, known by their names in any order, as in the literature; of all others the
    next, of the last the first.
    """
    names = list(names)
    if set(names) == CIFAR10_NAMES:
        return np.array([names.index(CIFAR10.get(name, name)) for name in names], np.int32)
    return np.roll(np.arange(len(names), dtype=np.int32), -1)


class NoisyLabels:
    """A source whose labels are partly wrong; "clean" holds the true ones, int32 [n].

    Symmetric noise redraws a label, at the rate, evenly from all classes, its own among them: of
    ten classes, nine in ten of those struck become wrong. Asymmetric noise makes of it what
    `confused` says. Which examples are struck depends on their index and the seed alone.
    Raises UserError where the source has no labels.
    """

    def __init__(self, source: Source, noise: Noise) -> None:
        if source.gather(np.arange(1)).get("label", np.zeros(())).ndim != 1:
            raise UserError(
                f"data.noise={':'.join(map(str, noise))}: {source.info.name} has no labels that "
                "could be wrong; leave it empty"
            )
        self._source, self.info = source, source.info
        self.copies = getattr(source, "copies", 1)
        classes = source.info.num_classes
        # NumPy promises this raw stream for ever.
        bits = np.random.Philox(key=np.array([noise.seed, _STREAM], np.uint64))
        struck, drawn = bits.random_raw(2 * len(source)).reshape(2, -1)
        self._struck = (struck >> np.uint64(11)) * 2.0**-53 < noise.rate
        if noise.kind == "symmetric":
            self._becomes = np.broadcast_to((drawn % classes)[:, None], (len(source), classes))
        else:
            names = source.info.class_names or tuple(map(str, range(classes)))
            self._becomes = np.broadcast_to(confused(names), (len(source), classes))

    @property
    def corrupt(self) -> int:
        """How many examples stand in for others that could not be read."""
        return getattr(self._source, "corrupt", 0)

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of any n examples, see `Source`, with "clean" beside "label"."""
        rows: dict[str, Any] = self._source.gather(indices)
        clean = rows["label"]
        examples = np.asarray(indices) % len(self)
        wrong = self._becomes[examples, clean].astype(clean.dtype)
        label = np.where(self._struck[examples], wrong, clean)
        return {**rows, "label": label, "clean": clean}
