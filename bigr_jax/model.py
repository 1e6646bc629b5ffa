"""A trained BiGR to draw, edit and read images with: NumPy in, NumPy out.

In a notebook: `import bigr_jax`, then `model = bigr_jax.load("runs/quickstart")`, then
`model.inpaint(image, mask, samples=8)`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from bigr_jax import inputs, progress
from bigr_jax.blend import seamless
from bigr_jax.data.image import as_image
from bigr_jax.errors import UserError, one_of
from bigr_jax.generate import editing
from bigr_jax.tasks.code_generator import CodeGenerator
from bigr_jax.tasks.editing import PROGRAMS
from bigr_jax.train.loop import scope
from bigr_jax.train.run import Run, opened

REDUCED = 2
# The programs that the tokenizer alone can run.
CODING = ("encode", "decode")


def load(workdir: str | os.PathLike[str], *, batch: int = 32, stage: str | None = None) -> Model:
    """Returns the trained model of a work directory.

    batch  images that go through the network at once; longer lists are cut
    stage  "tokenizer": what it takes to encode and decode, where no more has been trained; None:
           the whole model

    Raises UserError where there is no such work directory, its experiment has no such model, or a
    stage is not finished.
    """
    return from_run(opened(os.fspath(workdir)), batch=batch, stage=stage)


def from_run(run: Run, *, batch: int = 32, stage: str | None = None) -> Model:
    """Returns the trained model of a run; see `load`."""
    if stage not in (None, "tokenizer"):
        raise one_of("stage", stage, ("tokenizer",))
    for name, method in run.methods.items():
        if isinstance(method.model, CodeGenerator):
            names = run.sources["train"].info.class_names
            variables = {"tokenizer": run.variables("tokenizer")}
            if stage is None:
                variables["generator"] = run.variables(name)
            return Model(method.model, variables, names, run.mesh, batch=batch)
    raise UserError(f"{run.config.slug} has no generator of images from codes, as bigr has")


class Model:
    """A trained BiGR: tokenizer, transformer and sampler.

    Images are NumPy arrays, uint8 or float in [0, 1], [H, W], [H, W, C] or [N, H, W, C], or Pillow
    images, or lists of these; those of another size are cropped and scaled as the data were. What
    is returned is uint8 [..., size, size, channels]. A label is the number or the name of a class.
    `seed` decides all that is drawn; an image does not depend on those that are drawn with it.
    `**sampling` are fields of `generate.masked.MaskedSampling`: cfg_scale=4.0, iterations=30.

    A program is compiled for each setting and power of two of images up to `batch`.

    generator    the task, of which the networks, the diffusion and the sampling are used
    variables    {"generator": tree, "tokenizer": tree}; the second suffices to encode and decode
    class_names  by number
    mesh         the devices
    """

    def __init__(
        self,
        generator: CodeGenerator,
        variables: Any,
        class_names: Sequence[str],
        mesh: Mesh,
        *,
        batch: int = 32,
    ) -> None:
        if batch < 1:
            raise UserError(f"batch={batch}: legal: 1 and more")
        self.generator, self.mesh, self.batch = generator, mesh, batch
        self.class_names = tuple(class_names)
        self._variables = variables
        self._programs: dict[str, Callable[..., Any]] = {}

    @property
    def size(self) -> int:
        """The side of an image in pixels."""
        return self.generator.tokenizer.image_size

    @property
    def channels(self) -> int:
        """1 of grey images, 3 of coloured ones."""
        return self.generator.tokenizer.channels

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.generator.net.num_classes

    def at_size(self, size: int) -> Model:
        """Returns the model for images of another side in pixels, of the same variables.

        It draws well where training saw that size (data.sizes). Raises UserError for a size that
        the tokenizer's layers do not divide.
        """
        generator = self.generator.at_size(size)
        return Model(generator, self._variables, self.class_names, self.mesh, batch=self.batch)

    def sample(self, labels: Any, *, seed: int = 0, **sampling: Any) -> np.ndarray:
        """Returns an image of each class: [n, size, size, channels]; a single label is n = 1."""
        wanted = inputs.labels(labels, self.class_names)
        how = editing.changed(self.generator.sampling, sampling)
        numbers = np.arange(len(wanted))
        return self._run("sample", seed, numbers, (wanted,), sampling=how)

    def inpaint(
        self,
        image: Any,
        mask: Any,
        *,
        label: Any = None,
        samples: int = 1,
        seed: int = 0,
        blend: bool = True,
        **sampling: Any,
    ) -> np.ndarray:
        """Returns images whose marked part is drawn anew, to suit the rest.

        image    one or several
        mask     for all images or one for each, of their size or aspect; white or True: draw anew
        label    what to draw, of all images or one for each; None: whatever suits
        samples  results per image
        blend    the part is blended into the image, which stays as it is elsewhere, to the bit;
                 False: all is as the tokenizer decodes it

        Returns [samples, size, size, channels] for one image, [N, samples, ...] for several.
        Raises UserError for a mask that marks nothing or no token, or of another aspect.
        """
        given = inputs.pictures(image, self.size, self.channels)
        masks = inputs.masks(mask, given)
        return self._drawn_anew(given, masks, label, samples, seed, blend, sampling)

    def outpaint(
        self,
        image: Any,
        mask: Any,
        *,
        label: Any = None,
        samples: int = 1,
        seed: int = 0,
        blend: bool = True,
        **sampling: Any,
    ) -> np.ndarray:
        """Returns images of which the marked part stays and all around it is drawn anew.

        Else as `inpaint`.
        """
        given = inputs.pictures(image, self.size, self.channels)
        masks = ~inputs.masks(mask, given)
        return self._drawn_anew(given, masks, label, samples, seed, blend, sampling)

    def edit(self, image: Any, mask: Any, label: Any, **rest: Any) -> np.ndarray:
        """Returns images whose marked part becomes a class; `rest` and result as of `inpaint`."""
        return self.inpaint(image, mask, label=label, **rest)

    def interpolate(
        self,
        first: Any,
        second: Any,
        *,
        steps: int | Sequence[float] = 8,
        samples: int = 1,
        seed: int = 0,
        **sampling: Any,
    ) -> np.ndarray:
        """Returns images on the way from one class to another, all drawn with the same numbers.

        steps    how many, evenly spread, both classes among them; or the shares of the second class
        samples  ways

        Returns [samples, steps, size, size, channels].
        """
        ends = [inputs.label(end, self.class_names, f"label {end!r}") for end in (first, second)]
        shares = np.linspace(0.0, 1.0, steps) if isinstance(steps, int) else np.asarray(steps)
        if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
            raise UserError(f"steps={steps!r}; legal: 1 and more, or shares from 0 to 1")
        self._check_classes("interpolate")
        how = editing.changed(self.generator.sampling, editing.INTERPOLATE, sampling)
        count = _positive("samples", samples) * len(shares)
        kept = np.tile(1.0 - shares, samples).astype(np.float32)
        rows = (*(np.full(count, end, np.int32) for end in ends), kept)
        numbers = np.repeat(np.arange(samples), len(shares))
        found = self._run("interpolate", seed, numbers, rows, sampling=how)
        return found.reshape(samples, len(shares), *found.shape[1:])

    def enrich(
        self,
        image: Any,
        *,
        label: Any = None,
        samples: int = 1,
        seed: int = 0,
        sweeps: int = editing.SWEEPS,
        reduce: int = REDUCED,
        **sampling: Any,
    ) -> np.ndarray:
        """Returns images with detail added to what is coarse in them.

        sweeps  how often all of the image is drawn anew, a quarter at a time
        reduce  the image is first made smaller by this factor and enlarged again; 1: it is not
        Else, and the result, as of `inpaint`.
        """
        given = inputs.pictures(image, self.size, self.channels)
        coarse = _coarse(given.pixels, _positive("reduce", reduce))
        how = editing.changed(self.generator.sampling, editing.ENRICH, sampling)
        rows = (coarse, *self._labels(label, len(coarse)))
        sweeps = _positive("sweeps", sweeps)
        return self._edited("enrich", given, rows, samples, seed, sampling=how, sweeps=sweeps)

    def encode(self, images: Any) -> np.ndarray:
        """Returns the codes of images, uint8 {0, 1} [N, tokens, bits], in raster order."""
        given = inputs.pictures(images, self.size, self.channels)
        return self._run("encode", 0, np.arange(len(given.pixels)), (given.pixels,))

    def decode(self, codes: Any) -> np.ndarray:
        """Returns the images [N, size, size, channels] of codes {0, 1} [N, tokens, bits].

        Raises ValueError for codes of another shape.
        """
        codes, net = np.asarray(codes), self.generator.net
        if codes.ndim != 3 or codes.shape[1:] != (net.length, net.bits):
            raise ValueError(f"codes {codes.shape} are not [N, {net.length}, {net.bits}]")
        return self._run("decode", 0, np.arange(len(codes)), (codes.astype(np.uint8),))

    def features(self, images: Any, layer: int | None = None) -> np.ndarray:
        """Returns what the transformer makes of images: the mean over the tokens after a block.

        layer  counts from 0; None: all

        Returns float32 [N, width], or of all layers [N, layers, width]. Raises UserError for a
        layer that does not exist.
        """
        given = inputs.pictures(images, self.size, self.channels)
        numbers = np.arange(len(given.pixels))
        return self._run("features", 0, numbers, (given.pixels,), layer=layer)

    def _drawn_anew(
        self,
        given: inputs.Pictures,
        masks: np.ndarray,
        label: Any,
        samples: int,
        seed: int,
        blend: bool,
        sampling: dict[str, Any],
    ) -> np.ndarray:
        net = self.generator.net
        tokens = np.broadcast_to(
            editing.token_mask(masks, net.grid), (len(given.pixels), net.length)
        )
        if not tokens.any(axis=1).all():
            factor = self.generator.tokenizer.factor
            raise UserError(
                "mask: nothing is to be drawn; what is must hold the middle of a token, "
                f"{factor} x {factor} pixels of the image at {self.size} x {self.size}"
            )
        how = editing.changed(self.generator.sampling, editing.INPAINT, sampling)
        rows = (given.pixels, tokens, *self._labels(label, len(tokens)))
        found = self._edited("inpaint", given, rows, samples, seed, sampling=how)
        if not blend:
            return found
        drawn = found.reshape(len(masks), samples, *found.shape[-3:])
        parts = [seamless(*part) for part in zip(drawn, given.pixels, masks, strict=True)]
        return np.stack(parts).reshape(found.shape)

    def _edited(
        self,
        name: str,
        given: inputs.Pictures,
        rows: Sequence[np.ndarray],
        samples: int,
        seed: int,
        **settings: Any,
    ) -> np.ndarray:
        """Runs a program `samples` times for each image."""
        repeated = [np.repeat(part, _positive("samples", samples), axis=0) for part in rows]
        found = self._run(name, seed, np.arange(len(repeated[0])), repeated, **settings)
        lead = (samples,) if given.single else (len(given.pixels), samples)
        return found.reshape(*lead, *found.shape[1:])

    def _labels(self, label: Any, count: int) -> tuple[np.ndarray, ...]:
        """One column of labels, or none where no class is asked for."""
        if label is None:
            if self.generator.label_drop == 0:
                raise UserError(
                    "label: this model was trained with masking.label_drop=0, so that it knows no "
                    "image without a class; give one"
                )
            return ()
        self._check_classes("label")
        found = inputs.labels(label, self.class_names, "label")
        if len(found) not in (1, count):
            raise UserError(f"label: {len(found)} labels for {count} images")
        return (np.broadcast_to(found, count),)

    def _check_classes(self, what: str) -> None:
        if self.generator.net.text:
            raise UserError(f"{what}: this model was trained with texts, it knows no classes")
        if self.generator.label_drop == 1:
            raise UserError(f"{what}: this model was trained without classes, it can draw none")

    def _run(
        self,
        name: str,
        seed: int,
        numbers: np.ndarray,
        rows: Sequence[np.ndarray],
        **settings: Any,
    ) -> np.ndarray:
        """Runs a program of this model over rows, `batch` at a time, the last ones padded.

        numbers   int [n]: which of the seed's keys a row draws with
        settings  hashable; a program is compiled for each
        """
        if name not in CODING and "generator" not in self._variables:
            raise UserError(
                f"{name}: this model was loaded with stage='tokenizer', which encodes and decodes; "
                "load it without"
            )
        count, lanes = len(numbers), self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = min(1 << (count - 1).bit_length(), self.batch)
        size = -(-size // lanes) * lanes
        parts = []
        with scope(self.mesh), progress.slow(f"{name}: compiling, and drawing {count}"):
            program = self._program(name, tuple(settings))
            for start in range(0, count, size):
                columns = [part[start : start + size] for part in (numbers, *rows)]
                left = len(columns[0])
                padding = [(0, size - left)]
                padded = [
                    np.pad(part, padding + [(0, 0)] * (part.ndim - 1), mode="edge")
                    for part in columns
                ]
                found = program(self._variables, jax.random.key(seed), *padded, **settings)
                parts.append(np.asarray(found)[:left])
        return np.concatenate(parts)

    def _program(self, name: str, static: tuple[str, ...]) -> Callable[..., Any]:
        if name not in self._programs:
            function = functools.partial(PROGRAMS[name], self.generator)
            self._programs[name] = jax.jit(function, static_argnames=static)
        return self._programs[name]


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name}={value!r}; legal: 1 and more")
    return int(value)


def _coarse(images: np.ndarray, factor: int) -> np.ndarray:
    """Makes images [N, H, W, C] smaller by a factor and enlarges them again, both bilinearly."""
    if factor == 1:
        return images
    out = np.empty_like(images)
    for row, image in enumerate(map(as_image, images)):
        small = (max(1, image.width // factor), max(1, image.height // factor))
        again = image.resize(small, Image.Resampling.BILINEAR).resize(
            image.size, Image.Resampling.BILINEAR
        )
        out[row] = np.asarray(again).reshape(out[row].shape)
    return out
