"""Finding the region that matches: a task with an answer for attention between regions of a map."""

from __future__ import annotations

import numpy as np

from bigr_jax.data.source import NOT_ASKED, Info, Request
from bigr_jax.errors import UserError

EXAMPLES = {"train": 65536, "test": 4096}
# Tokens along a side of the map, and of a region.
SIDE, REGION = 8, 2
# The axes of a token: codes, then classes, then the mark of the one that asks; the rest is noise.
CHANNELS, CODES, CLASSES = 32, 12, 8
MARK = CODES + CLASSES
# Regions that show other codes, and the sizes of what a token says and of the noise.
OTHERS, SIGNAL, NOISE = 2, 3.0, 0.3


class MatchingSource:
    """Maps of noise in which one token asks and another, elsewhere, of the same code, answers.

    Token A, in one region, shows a code and a mark; token B, in another, the same code and a class;
    tokens in two more regions other codes and any class. The class of B is asked for at A. What is
    shown where comes from a seed of the part, the noise from one of each example.
    """

    def __init__(self, split: str) -> None:
        self.info = Info(
            name="matching",
            num_classes=CLASSES,
            class_names=tuple(str(label) for label in range(CLASSES)),
            image_shape=(SIDE, SIDE),
            licence="made here",
            origin="made from a seed",
        )
        count, self._test = EXAMPLES[split], split == "test"
        # Of NumPy's generators, the one whose numbers are promised to stay the same.
        random = np.random.RandomState(self._test)
        across = SIDE // REGION
        # Each of A, B and the others: [count, 2 + OTHERS].
        regions = random.random_sample((count, across**2)).argsort(axis=1)[:, : 2 + OTHERS]
        codes = random.random_sample((count, CODES)).argsort(axis=1)[:, : 1 + OTHERS]
        places = random.randint(0, REGION**2, regions.shape)
        rows = regions // across * REGION + places // REGION
        columns = regions % across * REGION + places % REGION
        kinds = (regions, rows, columns, np.concatenate([codes[:, :1], codes], axis=1))
        self._regions, self._rows, self._columns, self._codes = (x.astype(np.uint8) for x in kinds)
        # Of all but A, which shows none.
        self._labels = random.randint(0, CLASSES, (count, 1 + OTHERS)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._labels)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"features": float32 [n, SIDE, SIDE, CHANNELS], "segments": uint8 [n, SIDE,
        SIDE], "regions": int32 [n, 2]} of any n indices.

        A segment is the class at A and NOT_ASKED elsewhere; the regions are those of A and of B,
        counted row by row.
        """
        features = np.empty((len(indices), SIDE, SIDE, CHANNELS), np.float32)
        for row, index in enumerate(np.asarray(indices).tolist()):
            random = np.random.RandomState((self._test, index))
            features[row] = NOISE * random.standard_normal(features.shape[1:])
        example = np.arange(len(indices))[:, None]
        y, x, labels = self._rows[indices], self._columns[indices], self._labels[indices]
        features[example, y, x, self._codes[indices]] += SIGNAL
        features[example[:, 0], y[:, 0], x[:, 0], MARK] += SIGNAL
        features[example, y[:, 1:], x[:, 1:], CODES + labels] += SIGNAL
        segments = np.full(features.shape[:3], NOT_ASKED, np.uint8)
        segments[example[:, 0], y[:, 0], x[:, 0]] = labels[:, 0]
        regions = self._regions[indices, :2].astype(np.int32)
        return {"features": features, "segments": segments, "regions": regions}


def open_matching(request: Request) -> MatchingSource:
    """Returns the part of the task; raises UserError where `size` is not that of its maps, 8."""
    if request.size != SIDE:
        raise UserError(f"data.size={request.size} is not the side of the maps; legal: {SIDE}")
    return MatchingSource(request.split)
