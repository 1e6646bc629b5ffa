"""An experiment in a work directory: what `bigr train`, `bigr eval` and `bigr sample` do."""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import bigr_jax
from bigr_jax import config as configs
from bigr_jax import durations, files, pictures, registry
from bigr_jax.api import Method, Report
from bigr_jax.data import Source, open_source
from bigr_jax.errors import UserError, nearest
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.train import optimizers, overview, sharding, state
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.loop import Evaluator, Plan, fit, scope
from bigr_jax.train.step import make_step
from bigr_jax.train.writer import Metrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy")
# What may differ between two runs in one work directory without changing what is learnt.
FREE = ("mesh.", "sample.", "report.", "study.", "logging.")
DRAWN_AT_ONCE = 100


class Run:
    """One experiment in one work directory, checked whole before anything is trained.

    Raises UserError for a mistake in the config, unread keys, absent data, or a work directory of
    another config.
    """

    def __init__(self, config: ConfigDict, workdir: str, profile: tuple[int, int] | None = None):
        self.workdir, self.profile = workdir, profile
        self.sources = {split: open_source(config.data, split) for split in ("train", "test")}
        self.config = resolved(config, self.sources["train"])
        view = configs.Audited(self.config)
        self.experiment = registry.load(view.slug)
        self.methods: dict[str, Method] = self.experiment.stages(view)
        self.mesh = sharding.make_mesh(dict(view.mesh.items()))
        self._view = view
        self._variables: dict[str, Any] = {}
        self._plans: dict[str, tuple[Plan, Any]] = {}
        for name in self.methods:
            self._plans[name] = self._plan(name)
        _ = dict(view.logging.items()), view.variant
        configs.check_read(view, except_sections=("sample", "report", "study", "data"))
        self.refuse_other_config()

    def refuse_other_config(self) -> None:
        """Raises UserError when the work directory was made with another config, naming the
        keys.
        """
        path = os.path.join(self.workdir, "config.json")
        if not os.path.exists(path):
            return
        changed = [
            f"{key} was {before!r}, now {after!r}"
            for key, before, after in configs.diff(configs.load_json(path), self.config)
            if not key.startswith(FREE)
        ]
        if changed:
            raise UserError(
                f"{self.workdir} was made with another config: {'; '.join(changed)}. "
                "Give another --workdir, or the same config to go on"
            )

    def write_description(self) -> None:
        """Writes config.json, env.json and params.txt."""
        if jax.process_index():
            return
        configs.save(self.config, os.path.join(self.workdir, "config.json"))
        files.write_json(os.path.join(self.workdir, "env.json"), environment())
        text = [
            f"# {name}\n"
            + overview.table(boxed, jax.tree.map(lambda x: x.sharding, plan.abstract.variables))
            for name, (plan, boxed) in self._plans.items()
        ]
        files.write_text(os.path.join(self.workdir, "params.txt"), "\n\n".join(text) + "\n")

    def train(self, name: str) -> None:
        """Trains a stage from where it stands and measures it; a stage that is done is left
        alone.
        """
        plan, _ = self._plans[name]
        results = self.results()
        if results["stages"].get(name, {}).get("step") == plan.total:
            print(f"{name}: already trained to step {plan.total}", file=sys.stderr)
            return
        given, begin = self.given(name), time.perf_counter()
        logging = self.config.logging
        with (
            Metrics(self.workdir, tensorboard=logging.tensorboard, wandb=logging.wandb) as metrics,
            self.checkpoints(name) as checkpoints,
        ):
            fit(plan, self.mesh, self.sources, given, checkpoints, metrics, self.workdir)
        self.measure(name, seconds=time.perf_counter() - begin)

    def measure(self, name: str, seconds: float | None = None) -> dict[str, Any]:
        """Evaluates a finished stage on the test split and writes its results and pictures."""
        plan, _ = self._plans[name]
        given, variables = self.given(name), self.variables(name)
        entry: dict[str, Any] = {"step": plan.total}
        old = self.results()["stages"].get(name, {})
        entry["seconds"] = round(seconds, 1) if seconds is not None else old.get("seconds")
        entry["test"] = Evaluator(plan, self.mesh, given)(variables, self.sources["test"])
        if plan.method.report is not None:
            report = self.report(name, plan.seed)
            entry["report"] = dict(report.metrics)
            for title, picture in report.images.items():
                if jax.process_index() == 0:
                    pictures.save_png(os.path.join(self.workdir, f"{title}.png"), picture)
        results = self.results()
        results["stages"][name] = entry
        if jax.process_index() == 0:
            files.write_json(os.path.join(self.workdir, "results.json"), results)
        return entry

    def report(self, name: str, seed: int) -> Report:
        """Returns what a finished stage has to show, drawn with a seed."""
        make = self.methods[name].report
        if make is None:
            raise UserError(f"stage {name!r} of {self.config.slug} has no report")
        with scope(self.mesh):
            key = jax.device_put(jax.random.key(seed), sharding.replicated(self.mesh))
            return make(self.variables(name), key, self.sources, self.given(name))

    def results(self) -> dict[str, Any]:
        """Returns what results.json holds so far."""
        found = files.read_json(os.path.join(self.workdir, "results.json"))
        return found or {"slug": self.config.slug, "variant": self.config.variant, "stages": {}}

    def given(self, name: str) -> dict[str, Any]:
        """Returns the variables of the stages that `name` builds on."""
        return {need: self.variables(need) for need in self.methods[name].needs}

    def variables(self, name: str) -> Any:
        """Returns the finished variables of a stage from its best or newest checkpoint.

        Raises UserError when the stage has not been trained to its end in this work directory.
        """
        if name not in self._variables:
            plan, _ = self._plans[name]
            with self.checkpoints(name) as checkpoints:
                found = checkpoints.latest()
                if found is None or found < plan.total:
                    raise UserError(
                        f"stage {name!r} is at step {found or 0} of {plan.total} in "
                        f"{self.workdir}; train it first: bigr train --config=... "
                        f"--workdir={self.workdir} --stage={name}"
                    )
                finished, _ = checkpoints.restore(plan.abstract, checkpoints.best_step())
            section = getattr(self.config.train, name)
            self._variables[name] = state.eval_variables(finished, section.optimizer.name)
        return self._variables[name]

    def checkpoints(self, name: str) -> Checkpoints:
        """Opens the checkpoints of a stage."""
        section = getattr(self.config.train, name)
        directory = os.path.join(os.path.abspath(self.workdir), name, "checkpoints")
        return Checkpoints(directory, keep=section.keep, best=section.best or None)

    def _plan(self, name: str) -> tuple[Plan, Any]:
        method, section = self.methods[name], getattr(self._view.train, name)
        source, key = self.sources["train"], f"train.{name}"
        size = section.batch_size
        self._check_batch(f"{key}.batch_size", size, section.accumulate)
        self._check_batch(f"{key}.eval_batch_size", section.eval_batch_size, 1)
        total = durations.steps(
            section.duration, key=f"{key}.duration", batch_size=size, examples=len(source)
        )

        def resolve(text: str, key: str) -> int:
            return durations.steps(
                text, key=key, batch_size=size, examples=len(source), total=total
            )

        batch = batch_spec(source, size)
        given = {need: self._plans[need][0].abstract.variables for need in method.needs}
        boxed = state.abstract_variables(method, batch, given)
        make = method.optimizer or optimizers.make
        tx, schedule = make(section.optimizer, total, boxed["params"], resolve, f"{key}.optimizer")
        abstract = state.abstract_state(
            boxed, tx, section.ema, self.mesh, tuple(self._view.sharding)
        )
        every = {n: resolve(getattr(section, n), f"{key}.{n}") for n in ("log", "evaluate", "save")}
        _ = section.keep, section.best
        seed = self._view.seed
        plan = Plan(
            name=name,
            method=method,
            step=make_step(method, tx, schedule, accumulate=section.accumulate, ema=section.ema),
            total=total,
            batch_size=size,
            eval_batch_size=section.eval_batch_size,
            seed=seed,
            log_every=every["log"],
            eval_every=every["evaluate"],
            save_every=every["save"],
            optimizer=section.optimizer.name,
            create=functools.partial(self._create, name, tx, abstract, batch),
            abstract=abstract,
            profile=self.profile,
        )
        return plan, boxed

    def _create(self, name: str, tx: Any, abstract: Any, batch: Any) -> Any:
        key = jax.device_put(jax.random.key(self.config.seed), sharding.replicated(self.mesh))
        with scope(self.mesh):
            return state.create(self.methods[name], tx, abstract, key, batch, self.given(name))

    def _check_batch(self, key: str, size: int, accumulate: int) -> None:
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if size % (rows * accumulate):
            what = f"data x fsdp = {rows}" + (
                f" times accumulate = {accumulate}" * (accumulate > 1)
            )
            raise UserError(f"{key}={size} must be a multiple of {what}")


def train(
    config: ConfigDict, workdir: str, stage: str | None = None, profile: str | None = None
) -> None:
    """Trains every stage of an experiment in order, or one of them, and measures each.

    Going on in a work directory continues where it stood. `profile` is "first:last", the steps to
    trace.
    """
    run = Run(config, workdir, _window(profile))
    if stage is not None and stage not in run.methods:
        raise UserError(
            f"--stage={stage} is no stage{nearest(stage, run.methods)}; "
            f"{config.slug} has: {', '.join(run.methods)}"
        )
    run.write_description()
    for name in [stage] if stage else run.methods:
        run.train(name)
    print(f"done: look into {workdir} ({', '.join(_shown(workdir))})")


def evaluate(workdir: str, stage: str | None = None) -> dict[str, Any]:
    """Measures the finished stages of a work directory again, writes results.json and returns
    it.
    """
    run = Run(_saved(workdir), workdir)
    for name in [stage] if stage else run.methods:
        if name not in run.methods:
            raise UserError(f"--stage={name} is no stage; legal: {', '.join(run.methods)}")
        run.measure(name)
    return run.results()


def sample(
    workdir: str,
    out: str | None,
    labels: Sequence[int] | None,
    per_class: int,
    seed: int,
    overrides: Mapping[str, str] | None = None,
) -> str:
    """Draws a grid, a row per class, from a work directory and returns the path of the PNG.

    overrides  {"sample.cfg_scale": "2.5"}: settings of the config's `sample` section
    """
    config = configs.override(_saved(workdir), overrides or {})
    run = Run(config, workdir)
    name = next((n for n in reversed(run.methods) if run.methods[n].sample is not None), None)
    if name is None:
        raise UserError(f"{config.slug} draws nothing: none of its stages has a sampler")
    count = run.config.data.num_classes
    rows = list(range(count)) if labels is None else list(labels)
    for label in rows:
        if not 0 <= label < count:
            raise UserError(f"--classes={label}: classes are 0 to {count - 1}")
    method, given, variables = run.methods[name], run.given(name), run.variables(name)
    assert method.sample is not None
    with scope(run.mesh):
        images = sample_in_batches(
            method.sample,
            variables,
            jax.random.key(seed),
            np.repeat(rows, per_class),
            given,
            min(DRAWN_AT_ONCE, len(rows) * per_class),
        )
    names = [run.sources["train"].info.class_names[label] for label in rows]
    path = out or os.path.join(workdir, f"samples-seed{seed}.png")
    pictures.save_png(path, pictures.grid(images, per_class, names=names))
    return path


def resolved(config: ConfigDict, source: Source) -> ConfigDict:
    """Returns the config with what 0 leaves to the data filled in: `data.channels`,
    `data.num_classes`, `data.examples`.
    """
    config = configs.copy(config)
    found = {
        "channels": source.info.image_shape[-1],
        "num_classes": source.info.num_classes,
        "examples": len(source),
    }
    for name, value in found.items():
        if config.data.get(name) not in (0, None, value):
            raise UserError(
                f"config.data.{name}={config.data[name]}, but {config.data.source} has {value}; "
                "0 takes what is there"
            )
        config.data[name] = value
    return config


def batch_spec(source: Source, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a training batch of `size` rows."""
    shapes = {
        name: (value.shape[1:], value.dtype) for name, value in source.gather(np.arange(1)).items()
    }
    shapes |= {"index": ((), np.dtype(np.int32)), "mask": ((), np.dtype(np.float32))}
    return {
        name: jax.ShapeDtypeStruct((size, *rest), kind) for name, (rest, kind) in shapes.items()
    }


def environment() -> dict[str, Any]:
    """Returns versions and devices, for env.json."""
    devices = jax.devices()
    return {
        "bigr_jax": bigr_jax.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
        "command": sys.argv,
    }


def _saved(workdir: str) -> ConfigDict:
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise UserError(
            f"--workdir={workdir} is no work directory of `bigr train`: {path} is missing"
        )
    return configs.load_json(path)


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
