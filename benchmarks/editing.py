"""How often the class of an image is read right after half of it was inpainted, without a label.

    python benchmarks/editing.py --workdir=DIR [--images=200] [--samples=8] [--seed=0]
                                 [--kinds=left,right,top,bottom]

Half of every test image is hidden, drawn anew by the model of a finished run with no class asked
for, and the whole is read by the run's classifier. Beside that ("inpainted", the first sample):

    vote               the class that most of the samples are read as, where a half suits several
    its class asked    the true class was asked for
    blank              the hidden half is black
    random bits        its tokens are fair coins, decoded and blended like the model's
    nearest neighbour  it is that of the training image whose other half is nearest in pixels
    decoded            nothing was hidden: the image after encoding and decoding, a bound from above
    original           nothing was hidden: the image itself
    most frequent      always the most frequent class of these images

Intervals are Wilson's, 95 %, for as many draws as there are images: the four halves of an image are
not independent, so that for all together they are too wide rather than too narrow.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigr_jax.blend import seamless
from bigr_jax.errors import UserError
from bigr_jax.generate.editing import token_mask
from bigr_jax.metrics.agreement import read_in_batches
from bigr_jax.model import Model, from_run
from bigr_jax.train.run import Run, opened

KINDS = ("left", "right", "top", "bottom")
DEVIATIONS = 1.959964


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table; returns the exit status."""
    given = arguments(argv)
    try:
        run = opened(given.workdir, data=True)
        model, read = from_run(run, batch=100), reader(run)
        images, labels = chosen(run, given.images)
    except UserError as error:
        print(f"bigr: {error}", file=sys.stderr)
        return 2
    train = everything(run, "train")["image"]
    table: dict[str, dict[str, np.ndarray]] = {}
    for kind in given.kinds:
        mask = half(kind, model.size)
        drawn = model.inpaint(images, mask, samples=given.samples, seed=given.seed)
        said = read(drawn.reshape(-1, *images.shape[1:])).reshape(len(images), -1)
        found = {"inpainted": said[:, 0], f"vote of {given.samples}": vote(said)}
        for name, filled in fills(model, train, images, labels, mask, given.seed).items():
            found[name] = read(filled)
        for name, classes in found.items():
            table.setdefault(name, {})[kind] = classes == labels
    whole = {
        "decoded": read(model.decode(model.encode(images))) == labels,
        "original": read(images) == labels,
        "most frequent": labels == np.bincount(labels).argmax(),
    }
    print(f"{given.workdir}: {len(images)} test images, half of each hidden, no label given\n")
    print("| right, % | " + " | ".join((*given.kinds, "all")) + " |")
    print("|---" * (len(given.kinds) + 2) + "|")
    for name, rows in table.items():
        columns = [*rows.values(), np.mean(list(rows.values()), axis=0)]
        print(f"| {name} | " + " | ".join(cell(column) for column in columns) + " |", flush=True)
    for name, right in whole.items():
        print(f"| {name} | " + " | " * len(given.kinds) + f"{cell(right)} |")
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", required=True, help="a finished run of bigr")
    parser.add_argument("--images", type=positive, default=200, help="of the test split; 200")
    parser.add_argument("--samples", type=positive, default=8, help="to vote; default 8")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing; default 0")
    parser.add_argument("--kinds", type=kinds, default=KINDS, help="halves; default all four")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Reads a whole number, 1 or more; any other is refused by argparse."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def kinds(text: str) -> tuple[str, ...]:
    """Reads "left,top"; what is no half is refused by argparse."""
    names = tuple(text.split(","))
    if set(names) - set(KINDS):
        raise ValueError(text)
    return names


def reader(run: Run) -> Any:
    """Returns images uint8 [n, H, W, C] -> classes int [n], as the run's classifier reads them.

    Raises UserError where the run has none.
    """
    found = [method.model for method in run.methods.values() if method.model is not None]
    referee = next((task.referee for task in found if getattr(task, "referee", None)), None)
    if referee is None:
        raise UserError(f"{run.workdir} has no classifier to read images: referee.enabled is false")
    predict = functools.partial(referee.apply, run.variables("referee"))
    return lambda images: read_in_batches(lambda x: predict(x)[0], images).argmax(-1)


def chosen(run: Run, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns test images uint8 [count, H, W, C], evenly spread over the split, and their labels.

    Raises UserError where there are not as many.
    """
    test = run.sources["test"]
    if count > len(test):
        raise UserError(f"--images={count}: the test split has {len(test)}")
    rows = test.gather(np.linspace(0, len(test) - 1, count).astype(int))
    return rows["image"], rows["label"]


def everything(run: Run, split: str) -> Any:
    """Returns all rows of a split."""
    source = run.sources[split]
    return source.gather(np.arange(len(source)))


def half(kind: str, size: int) -> np.ndarray:
    """Returns the mask of a half, bool [size, size], True = hidden."""
    row, col = np.mgrid[:size, :size]
    along = col if kind in ("left", "right") else row
    return along < size // 2 if kind in ("left", "top") else along >= size - size // 2


def vote(said: np.ndarray) -> np.ndarray:
    """Returns the class that most samples were read as, int [n], of int [n, samples]."""
    return np.stack([np.bincount(row).argmax() for row in said])


def fills(
    model: Model,
    train: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Returns images with the hidden half filled in every way, {name: uint8 [n, H, W, C]}."""
    rng, shown = np.random.default_rng(seed), mask[..., None]
    codes, tokens = model.encode(images), token_mask(mask, model.generator.net.grid)
    coins = rng.integers(0, 2, codes.shape, np.uint8)
    random = model.decode(np.where(tokens[:, None], coins, codes))
    return {
        "its class asked": model.edit(images, mask, labels, seed=seed)[:, 0],
        "nearest neighbour": np.where(shown, train[nearest(train, images, ~mask)], images),
        "random bits": np.stack(
            [seamless(a, b, mask) for a, b in zip(random, images, strict=True)]
        ),
        "blank": np.where(shown, np.uint8(0), images),
    }


def nearest(train: np.ndarray, images: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns the numbers of the training images that are nearest in the pixels `seen`, int [n]."""
    a = images[:, seen].reshape(len(images), -1).astype(np.float32)
    b = train[:, seen].reshape(len(train), -1).astype(np.float32)
    # |a - b|^2 without |a|^2, which is the same for all.
    return ((b * b).sum(1) - 2 * a @ b.T).argmin(1)


def cell(right: np.ndarray) -> str:
    """Returns the share in percent and its interval, "93.5 (89.2-96.2)"."""
    low, high = wilson(float(right.mean()), len(right))
    return f"{100 * right.mean():.1f} ({100 * low:.1f}-{100 * high:.1f})"


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of `count` draws (Wilson 1927)."""
    square = DEVIATIONS**2 / count
    middle = (share + square / 2) / (1 + square)
    width = DEVIATIONS / (1 + square) * math.sqrt((share * (1 - share) + square / 4) / count)
    return middle - width, middle + width


if __name__ == "__main__":
    sys.exit(main())
