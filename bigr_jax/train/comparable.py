"""Numbers that can be set beside published ones: FID and its kin, of a work directory or a file.

Of several processes each does its share of the drawing and reading and gets all the features; files
are written by the first and must be seen by all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigr_jax import files
from bigr_jax.data import Source, eval_batches
from bigr_jax.data.source import with_progress
from bigr_jax.errors import UserError
from bigr_jax.metrics import reference as references
from bigr_jax.metrics.comparable import PROTOCOL, compare, summary
from bigr_jax.metrics.reference import Reference
from bigr_jax.train import sharding
from bigr_jax.train.drawn_samples import DrawnSamples
from bigr_jax.train.inception_reader import InceptionReader, round_up
from bigr_jax.train.run import Run, opened

SAMPLES, BATCH = 50_000, 64
# Images of the training split that precision, recall and KID look at.
SHOWN = 10_000
Numbers = dict[str, Any]


class Settings(NamedTuple):
    """What `bigr eval --inception` was told.

    inception  file of weights
    reference  npz; None: the training split
    samples    how many are drawn
    out        npz that they are written to; None: in the work directory
    batch      images that are drawn and read at once
    """

    inception: str
    reference: str | None = None
    samples: int = SAMPLES
    out: str | None = None
    seed: int = 0
    batch: int = BATCH


def compare_run(
    workdir: str, settings: Settings, overrides: Mapping[str, str] | None = None
) -> Numbers:
    """Draws from a work directory, measures, and writes the numbers to results.json under
    "comparable".

    overrides  {"sample.cfg_scale": "2.5"}: settings of the config's `sample` section
    Raises UserError as `drawn_samples.DrawnSamples`, `InceptionReader` and `read_reference` do.
    """
    # What is wrong with small files is said before anything is drawn.
    given = None if settings.reference is None else references.read_reference(settings.reference)
    run = opened(workdir, overrides)
    size = round_up(settings.batch, run.mesh)
    path = settings.out or os.path.join(workdir, f"samples-{settings.samples}-{settings.seed}.npz")
    if not path.endswith(".npz"):
        raise UserError(f"--out={path}: legal: a name that ends in .npz")
    drawn = DrawnSamples(run, path, settings.samples, settings.seed, size)
    reader = InceptionReader(settings.inception, run.mesh, size)
    if given is None:
        given = training_split(run, reader)
    found = summary(drawn.batches(), reader, "samples")
    where = settings.reference or "training split"
    numbers = _numbers(settings, reader, where, compare(found, given, reader, size))
    results = run.results()
    entry = {"stage": drawn.stage, "seed": settings.seed, **numbers, "drawn": path}
    results["comparable"] = {**entry, "sample": dict(run.config.get("sample", {}))}
    if jax.process_index() == 0:
        files.write_json(os.path.join(workdir, "results.json"), results)
    return dict(results["comparable"])


def compare_files(images: str, settings: Settings) -> Numbers:
    """Returns the numbers of an npz of images, without a work directory.

    Raises UserError for a missing or broken file and where no reference is named.
    """
    if settings.reference is None:
        raise UserError("--images is compared with --reference=REF.npz, which is missing")
    drawn = references.read_images(images)
    given = references.read_reference(settings.reference)
    mesh = sharding.make_mesh({"data": -1})
    size = round_up(settings.batch, mesh)
    reader = InceptionReader(settings.inception, mesh, size)
    batches = _shown(drawn.batches(size), len(drawn), size, f"reading {images}")
    found = summary(batches, reader, "images")
    settings = settings._replace(samples=len(drawn))
    numbers = compare(found, given, reader, size)
    return _numbers(settings, reader, settings.reference or "", numbers)


def training_split(run: Run, reader: InceptionReader) -> Reference:
    """Returns the statistics of a run's training split, computed once and kept in the work
    directory with some of its images, as a file that --reference takes.

    Raises UserError for data without images.
    """
    path = os.path.join(run.workdir, "reference-train.npz")
    source, section = run.sources["train"], run.config.data
    made = {
        "inception": reader.name,
        "examples": len(source),
        "data": {name: section.get(name) for name in ("source", "size", "channels")},
    }
    if references.read_made(path) != made:
        _check_images(source)
        batches = (batch["image"][batch["mask"] > 0] for batch in eval_batches(source, reader.size))
        batches = (references.three_channels(images) for images in batches)
        what = f"reading the {len(source)} images of the training split"
        shown = _shown(batches, len(source), reader.size, what)
        found = summary(shown, reader, "training split", keep=False)
        chosen = np.linspace(0, len(source) - 1, min(len(source), SHOWN)).astype(int)
        images = references.three_channels(source.gather(chosen)["image"])
        arrays = {**references.statistics(found.pool, found.spatial), references.IMAGES: images}
        if jax.process_index() == 0:
            references.write(path, arrays, made)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(path)
    return references.read_reference(path)


def _numbers(
    settings: Settings, reader: InceptionReader, where: str, found: Mapping[str, float]
) -> Numbers:
    return {
        **found,
        "samples": settings.samples,
        "reference": where,
        "inception": reader.name,
        "protocol": PROTOCOL,
    }


def _check_images(source: Source) -> None:
    if "image" not in source.gather(np.arange(1)):
        raise UserError("the data hold no images to compare with; give --reference=REF.npz")


def _shown(batches: Iterator[np.ndarray], count: int, size: int, what: str) -> Iterator[np.ndarray]:
    if jax.process_index():
        return batches
    return with_progress(batches, -(-count // size), what)
