"""What it costs BiGR to draw at another size than it was trained at; trains nothing.

    python benchmarks/resolution.py --workdir=DIR [--scales=1,1.5,2] [--images=100]
                                    [--iterations=N] [--cfg_scale=X]

Every size is drawn by the same parameters: tokenizer and transformer know none, but for the
position embedding, which is scaled bicubically, and the rotations, whose positions are interpolated
(they come closer) or extrapolated (there are more of them). What was drawn is scaled down to the
trained size, where the run's referee reads it: the share of what was asked for, beside that of test
images that only went through the tokenizer at this size, and the Frechet distance to the test split
in its features. Seconds are of one image, compiled beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import positive, table

from bigr_jax import config as configs
from bigr_jax.data.augment import to_float
from bigr_jax.errors import UserError
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.models.bigr import POSITIONS
from bigr_jax.tasks.autoencoder import decode, encode
from bigr_jax.tasks.captions import caption_report, distinct
from bigr_jax.tasks.code_generator import DRAWN_AT_ONCE
from bigr_jax.tasks.drawing import drawing_report, everything
from bigr_jax.tasks.sizes import scaled
from bigr_jax.train.run import Run

HEADER = ["size", "tokens", "positions", "coded", "as asked", "frechet", "seconds"]


def main(argv: Sequence[str] | None = None) -> int:
    """Draws at all sizes and prints the table; returns the exit status."""
    given = arguments(argv)
    try:
        run = Run(configs.load_json(os.path.join(given.workdir, "config.json")), given.workdir)
        model = run.methods["generator"].model
        if model.referee is None:
            raise UserError(f"{given.workdir} has no referee: config.referee.enabled was false")
        changes = {"iterations": given.iterations, "cfg_scale": given.cfg_scale}
        chosen = {name: value for name, value in changes.items() if value is not None}
        sampling = dataclasses.replace(model.sampling, **chosen)
        model, rows = dataclasses.replace(model, sampling=sampling), []
        for scale in given.scales:
            size = round(scale * model.tokenizer.image_size)
            for positions in POSITIONS[: 1 if size == model.tokenizer.image_size else None]:
                rows.append(measured(run, model, size, positions, given.images))
    except UserError as error:
        print(f"bigr: {error}", file=sys.stderr)
        return 2
    net = model.net
    print(
        f"{given.workdir}: trained at {model.tokenizer.image_size} pixels, {net.length} tokens; "
        f"{given.images} images, {sampling.iterations} iterations, cfg_scale "
        f"{sampling.cfg_scale:g}, on {jax.devices()[0].device_kind}\n"
    )
    print(table(HEADER, rows))
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", required=True, help="a finished run with a referee")
    parser.add_argument("--scales", type=scales, default=(1.0, 1.5, 2.0), help="default 1,1.5,2")
    parser.add_argument("--images", type=positive, default=100, help="of every size; default 100")
    parser.add_argument("--iterations", type=positive, help="of the sampler; default the run's")
    parser.add_argument("--cfg_scale", type=float, help="of the guidance; default the run's")
    return parser.parse_args(argv)


def scales(text: str) -> tuple[float, ...]:
    """Reads "1,1.5,2"; what is no list of sizes is refused by argparse."""
    found = tuple(float(word) for word in text.split(","))
    if min(found) <= 0:
        raise ValueError(text)
    return found


def measured(run: Run, model: Any, size: int, positions: str, images: int) -> list[str]:
    """Returns the table's row of one size."""
    wide, side = model.at_size(size, positions), model.tokenizer.image_size
    variables, given, sources = run.variables("generator"), run.given("generator"), run.sources
    read = lambda x: model.referee.apply(given["referee"], x)  # noqa: E731
    source: Any = sources["test"]
    test = everything(source)
    if model.net.text:
        rows, right = distinct(source), "caption_top1"
        asked: Any = jax.tree.map(lambda x: jnp.asarray(x[rows]), model.condition(test))
        kinds, which = source.which[rows], source.which
        count = -(-images // len(rows))
        told = lambda draw: caption_report(draw, rows, source, count, read)  # noqa: E731
    else:
        kinds, which, right = np.arange(model.net.num_classes), test["label"], "agreement"
        asked = jnp.asarray(kinds)
        labels = np.repeat(kinds, -(-images // len(kinds)))
        told = lambda draw: drawing_report(draw, sources, labels, read)  # noqa: E731
    draw = Drawing(wide, variables, given, side, asked)
    found = told(draw).metrics
    coded = told(Coded(wide, given, side, test["image"], [which == kind for kind in kinds])).metrics
    name = "trained" if size == side else positions
    numbers = [f"{coded[right]:.3f}", f"{found[right]:.3f}", f"{found['frechet']:.3f}"]
    return [str(size), str(wide.net.length), name, *numbers, f"{draw.seconds:.3g}"]


@dataclasses.dataclass
class Coded:
    """Test images, of each number those of its kind, as the tokenizer shows them at another size:
    what a size costs before anything is drawn.

    images  uint8 [n, side, side, C]; kinds: which of them are of each number, bool [n]
    """

    model: Any
    given: Any
    side: int
    images: np.ndarray
    kinds: Sequence[np.ndarray]

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Returns images, float32 [n, side, side, C]."""
        rng = np.random.default_rng(0)
        chosen = [rng.choice(np.flatnonzero(self.kinds[number])) for number in numbers]
        show, size = jax.jit(self.shown), min(DRAWN_AT_ONCE, len(chosen))
        # The last batch is as long as the others, so that one program shows all.
        padded = np.pad(self.images[chosen], [(0, -len(chosen) % size)] + 3 * [(0, 0)], mode="edge")
        parts = [show(padded[first : first + size]) for first in range(0, len(padded), size)]
        return np.concatenate([np.asarray(part) for part in parts])[: len(chosen)]

    def shown(self, images: Any) -> Any:
        """Returns images coded at the model's size, and scaled back."""
        tokenizer = self.model.tokenizer
        own = scaled({"image": images}, tokenizer.image_size)["image"]
        codes = encode(tokenizer, self.given["tokenizer"], to_float(own))
        return resized(decode(tokenizer, self.given["tokenizer"], codes), self.side)


@dataclasses.dataclass
class Drawing:
    """Draws rows of `asked` at another size, scaled to the trained one, and keeps the time."""

    model: Any
    variables: Any
    given: Any
    side: int
    asked: Any
    seconds: float = 0.0

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Returns images, float32 [n, H, W, C], of what the rows of `asked` describe."""
        size = min(DRAWN_AT_ONCE, len(numbers))
        # One function throughout, so that it is compiled once.
        sample, key = self.sample, jax.random.key(0)

        def draw(numbers: np.ndarray) -> np.ndarray:
            return sample_in_batches(sample, self.variables, key, numbers, self.given, size)

        draw(numbers[:size])
        begin = time.perf_counter()
        images = draw(numbers)
        self.seconds = (time.perf_counter() - begin) / len(numbers)
        return images

    def sample(self, variables: Any, key: Any, numbers: Any, given: Any) -> Any:
        """Returns what is drawn, at the trained size."""
        asked = jax.tree.map(lambda x: x[numbers], self.asked)
        images = self.model.sample(variables, key, asked, given)
        return resized(images, self.side)


def resized(images: Any, side: int) -> Any:
    """Returns images of another side."""
    shape = (len(images), side, side, images.shape[-1])
    return jnp.clip(jax.image.resize(images, shape, "linear"), 0.0, 1.0)


if __name__ == "__main__":
    sys.exit(main())
