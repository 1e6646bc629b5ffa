"""`bigr edit`: draws parts of an image anew with a trained BiGR, as it is."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.cli.eval import required_workdir
from bigr_jax.errors import UserError, one_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from bigr_jax.model import Model
    from bigr_jax.train.run import Run

# Which flags an action reads; the first of them it cannot do without.
ACTIONS = {
    "inpaint": ("image", "mask", "box", "label", "strip"),
    "outpaint": ("image", "mask", "box", "label", "strip"),
    "edit": ("image", "mask", "box", "label", "strip"),
    "enrich": ("image", "label", "strip"),
    "interpolate": ("label", "steps"),
}
OPTIONAL = ("image", "mask", "box", "label", "strip", "steps")
SAMPLES, STEPS, COLUMNS = 8, 8, 8
Sheet = tuple["np.ndarray", int]
BOX = "top,left,height,width"


def define(values: flags.FlagValues) -> None:
    """Declares what to edit, how, and where the result goes."""

    def text(name: str, meaning: str) -> None:
        flags.DEFINE_string(name, None, meaning, flag_values=values)

    def number(name: str, meaning: str, lowest: int, default: int | None = None) -> None:
        flags.DEFINE_integer(name, default, meaning, lower_bound=lowest, flag_values=values)

    text("workdir", "folder that `bigr train` filled")
    text("image", "the image; test:17 is number 17 of the test split, where the data are there")
    text("mask", "image of the same aspect, white where to draw anew; of outpaint, what stays")
    text("box", f"in place of a mask, {BOX} in pixels of the image")
    text("label", "class to draw, by number or name; of interpolate two, 3,5; default what suits")
    text("out", "PNG to write, all samples; default in the work directory")
    text("strip", "PNG to write, before, mask and after; default beside --out")
    number("samples", f"results; default {SAMPLES}, of interpolate 1", 1)
    number("steps", f"images from class to class, of interpolate; default {STEPS}", 1)
    number("seed", "seed of the draw; default 0", 0, 0)
    number("size", "side of the images in pixels; default that of training", 1)


def run(arguments: Arguments) -> None:
    """Writes the results and a strip of before, mask and after, and prints the paths."""
    action, workdir = _action(arguments), required_workdir(arguments)
    given = arguments.flags
    paths = _paths(action, workdir, given)
    # Files are looked at before anything is compiled, and written after all is drawn.
    image = _read(given, "image")
    mask: Any = _read(given, "mask")
    prepare()
    from bigr_jax import pictures
    from bigr_jax.model import from_run
    from bigr_jax.train.run import opened

    run = opened(workdir)
    if image is None and given.image is not None:
        image = _of_test_split(run, given.image)
    if given.box is not None:
        assert image is not None
        mask = box(given.box, image.height, image.width)
    model = from_run(run) if given.size is None else from_run(run).at_size(given.size)
    settings = _sampling(model, arguments.overrides)
    if action == "interpolate":
        found = [_interpolated(model, given, settings)]
    else:
        found = _edited(action, model, given, image, mask, settings)
    for path, (images, columns) in zip(paths, found, strict=True):
        try:
            pictures.save_png(path, pictures.grid(images, columns))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
        print(path)


def box(text: str, height: int, width: int) -> np.ndarray:
    """Returns the mask, bool [height, width], of "top,left,height,width" in pixels.

    Raises UserError for another form, and for a box that is not within the image.
    """
    import numpy as np

    words = [word.strip() for word in text.split(",")]
    if len(words) != 4 or not all(word.isdecimal() for word in words):
        raise UserError(f"--box={text} is not {BOX}, e.g. 0,0,{height},{max(1, width // 2)}")
    top, left, high, wide = map(int, words)
    if min(high, wide) < 1 or top + high > height or left + wide > width:
        raise UserError(
            f"--box={text} is empty or not within the image of {height} x {width}; legal: {BOX}, "
            f"e.g. 0,0,{height},{max(1, width // 2)}"
        )
    mask = np.zeros((height, width), bool)
    mask[top : top + high, left : left + wide] = True
    return mask


def _paths(action: str, workdir: str, given: Any) -> list[str]:
    out = given.out or os.path.join(workdir, f"{action}-seed{given.seed}.png")
    strip = given.strip or f"{os.path.splitext(out)[0]}-strip.png"
    paths = [out] if action == "interpolate" else [out, strip]
    for path in paths:
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; legal: the PNG to write")
    if os.path.abspath(out) == os.path.abspath(strip):
        raise UserError(f"--out and --strip are both {out}")
    return paths


def _action(arguments: Arguments) -> str:
    if not arguments.positional:
        raise UserError(f"bigr edit needs an action: {', '.join(ACTIONS)}")
    (action,), given = arguments.positional, arguments.flags
    if action not in ACTIONS:
        raise one_of("action", action, ACTIONS)
    reads = ACTIONS[action]
    for name in OPTIONAL:
        if name not in reads and given[name].value is not None:
            raise UserError(f"bigr edit {action} takes no --{name}")
    if given[reads[0]].value is None:
        raise UserError(f"--{reads[0]} is missing, which bigr edit {action} needs")
    if "mask" in reads and (given.mask is None) == (given.box is None):
        raise UserError(f"bigr edit {action} needs one of --mask=MASK.png and --box={BOX}")
    if action == "edit" and given.label is None:
        raise UserError("--label is missing, the class that the marked part becomes")
    return str(action)


def _read(given: Any, name: str) -> Image.Image | None:
    """The image file that a flag names; None for none, and for one of the test split."""
    path = given[name].value
    if path is None or (name == "image" and path.startswith("test:")):
        return None
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = (
            getattr(error, "strerror", None)
            or "it is no image that can be read; legal: PNG, JPEG, WebP"
        )
        raise UserError(f"--{name}={path}: {why}") from None


def _of_test_split(run: Run, text: str) -> Image.Image:
    import numpy as np

    from bigr_jax.data.image import as_image

    number, source = text.removeprefix("test:"), run.sources["test"]
    if not number.isdecimal() or int(number) >= len(source):
        raise UserError(f"--image={text}; legal: a file, or test:0 to test:{len(source) - 1}")
    row = source.gather(np.asarray([int(number)]))
    if "image" not in row:
        raise UserError(f"--image={text}: the data hold codes, no images; give a file")
    return as_image(row["image"][0])


def _sampling(model: Model, overrides: dict[str, str]) -> dict[str, Any]:
    """The settings that were typed, read as what they are in the sampler."""
    from ml_collections import ConfigDict

    from bigr_jax import config

    fields = ConfigDict({"sample": dataclasses.asdict(model.generator.sampling)})
    typed = config.flat(config.override(fields, overrides))
    return {key.removeprefix("sample."): typed[key] for key in overrides}


def _interpolated(model: Model, given: Any, settings: dict[str, Any]) -> Sheet:
    """The ways from class to class, one below the other."""
    from bigr_jax import inputs

    words = given.label.split(",")
    if len(words) != 2:
        raise UserError(f"--label={given.label} is not two classes, e.g. --label=3,5")
    ends = [inputs.label(word.strip(), model.class_names, "--label") for word in words]
    steps, count = given.steps or STEPS, given.samples or 1
    how: dict[str, Any] = {"steps": steps, "samples": count, "seed": given.seed, **settings}
    ways = model.interpolate(ends[0], ends[1], **how)
    return ways.reshape(-1, *ways.shape[2:]), steps


def _edited(
    action: str, model: Model, given: Any, image: Any, mask: Any, settings: dict[str, Any]
) -> list[Sheet]:
    """The results, and the strip."""
    import numpy as np

    from bigr_jax import inputs

    how = {"seed": given.seed, "samples": given.samples or SAMPLES, **settings}
    if given.label is not None:
        how["label"] = inputs.label(given.label, model.class_names, "--label")
    before = inputs.pictures(image, model.size, model.channels)
    if action == "enrich":
        found = model.enrich(image, **how)
        strip = np.concatenate([before.pixels, found[:1]])
    else:
        called = f"--mask={given.mask}" if given.mask else f"--box={given.box}"
        marked = inputs.masks(mask, before, called)
        draw = model.outpaint if action == "outpaint" else model.inpaint
        found = draw(before.pixels[0], marked[0], **how)
        shown = np.where(marked[..., None], 255, 0).astype(np.uint8)
        shown = np.broadcast_to(shown, before.pixels.shape)
        strip = np.concatenate([before.pixels, shown, found[:1]])
    return [(found, min(COLUMNS, len(found))), (strip, len(strip))]


COMMAND = Command(
    name="edit",
    summary=(
        "Draws with a trained BiGR, as it is: inpaint what a mask marks, outpaint all around it,\n"
        "edit it into a class, enrich what is coarse, or interpolate between two classes."
    ),
    usage="ACTION --workdir=DIR --image=IN.png [--mask=MASK.png | --box=0,0,16,32] ...",
    examples=(
        "bigr edit inpaint --workdir=runs/quickstart --image=test:17 --box=0,0,16,32",
        "bigr edit edit --workdir=runs/quickstart --image=shoe.png --mask=sole.png --label=3",
        "bigr edit interpolate --workdir=runs/quickstart --label=3,5 --steps=8 --out=between.png",
    ),
    define=define,
    run=run,
    config=("--config.KEY",),
    words=1,
)
