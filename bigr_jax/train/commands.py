"""What `bigr train`, `bigr eval` and `bigr sample` do with a work directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bigr_jax import pictures, progress
from bigr_jax.api import Array, Method
from bigr_jax.data.captioned import FEATURES, WORDS, text_features
from bigr_jax.errors import UserError
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.nn.embed import Text
from bigr_jax.tasks.code_generator import CodeGenerator
from bigr_jax.train.loop import scope
from bigr_jax.train.run import Run, opened
from bigr_jax.train.workdir import mesh_of

DRAWN_AT_ONCE = 100


def train(
    config: ConfigDict,
    workdir: str,
    stage: str | None = None,
    profile: str | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Trains every stage of an experiment in order, or one of them, measures each, and returns what
    results.json holds.

    Going on in a work directory continues where it stood.

    profile  "first:last", the steps to trace
    base     another work directory, where the stages that `stage` builds on are found
    """
    if base and not stage:
        raise UserError(
            f"--base={base} goes with --stage=STAGE, which is missing: the stage that is trained "
            "on those found there"
        )
    below = opened(base, mesh_of(config)) if base else None
    run = Run(config, workdir, _window(profile), base=below, stage=stage)
    names = run.stage_names(stage)
    with run.writing():
        run.write_description()
        for name in names:
            run.train(name)
    print(f"done: look into {workdir} ({', '.join(_shown(workdir))})")
    return run.results()


def evaluate(workdir: str, stage: str | None = None) -> dict[str, Any]:
    """Measures one stage of a work directory, or all finished ones, again; see results.json."""
    run = opened(workdir, data=True)
    names = run.own if stage is None else run.stage_names(stage)
    # With none finished, the first says what is missing.
    for name in [n for n in names if run.is_finished(n)] or names[:1]:
        run.measure(name)
    return run.results()


def sample(
    workdir: str,
    out: str | None,
    labels: Sequence[int] | None,
    per_class: int,
    seed: int,
    overrides: Mapping[str, str] | None = None,
    captions: Sequence[str] = (),
    size: int | None = None,
) -> str:
    """Draws a grid, a row per class or caption, from a work directory and returns the path of the
    PNG.

    overrides  {"sample.cfg_scale": "2.5"}: settings of the config's `sample` section
    captions   what a model that is conditioned on texts shall draw, in place of labels
    size       side of the pictures in pixels; None: that of training
    """
    run = opened(workdir, overrides)
    name = next((n for n in reversed(run.methods) if run.methods[n].sample is not None), None)
    if name is None:
        raise UserError(f"{run.config.slug} draws nothing: none of its stages has a sampler")
    method = run.methods[name]
    if size is not None:
        if not isinstance(method.model, CodeGenerator):
            raise UserError(f"--size={size}: {run.config.slug} draws at the size of training alone")
        method = method.model.at_size(size).method()
    draw, names = _drawing(run, method, labels, captions)
    rows = list(range(len(names))) if captions or labels is None else list(labels)
    given, variables = run.given(name), run.variables(name)
    with (
        scope(run.mesh),
        progress.slow(f"compiling the sampler of {name}, and drawing {len(rows) * per_class}"),
    ):
        images = sample_in_batches(
            draw,
            variables,
            jax.random.key(seed),
            np.repeat(rows, per_class),
            given,
            min(DRAWN_AT_ONCE, len(rows) * per_class),
        )
    path = out or os.path.join(workdir, f"samples-seed{seed}.png")
    shown = [names[row] for row in rows]
    if jax.process_index() == 0:
        pictures.save_png(path, pictures.grid(images, per_class, names=shown))
    return path


def _drawing(
    run: Run, method: Method, labels: Sequence[int] | None, captions: Sequence[str]
) -> tuple[Callable[..., Array], Sequence[str]]:
    """Returns the function that draws rows by their numbers, and the rows' names."""
    assert method.sample is not None
    wanted = getattr(getattr(method.model, "net", None), "text", ())
    if wanted and not captions:
        raise UserError("--captions is missing: this model draws what a text says")
    if captions and wanted != (WORDS, FEATURES):
        raise UserError(
            f"--captions={';'.join(captions)}: this model "
            + ("reads the features of another encoder" if wanted else "draws classes: --classes")
        )
    if captions:
        features, mask = map(jnp.asarray, text_features(captions))
        return method.model.describing(Text(features, mask)), captions
    count = run.config.data.num_classes
    for label in labels or ():
        if not 0 <= label < count:
            raise UserError(f"--classes={label}: classes are 0 to {count - 1}, e.g. --classes=0,1")
    return method.sample, run.sources["train"].info.class_names


def _window(profile: str | None) -> tuple[int, int] | None:
    if not profile:
        return None
    first, _, last = profile.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise UserError(f"--profile={profile} is not FIRST:LAST, two steps, e.g. 10:13")
    return int(first), int(last)


def _shown(workdir: str) -> list[str]:
    names = sorted(name for name in os.listdir(workdir) if name.endswith(".png"))
    return [*names, "results.json", "metrics.jsonl"]
