"""An experiment in a work directory: its stages, trained, measured and used."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax import durations, files, pictures, progress, registry
from bigr_jax.api import Given, Method, Report, TrainState
from bigr_jax.data import Source, open_source
from bigr_jax.data.described import describe
from bigr_jax.data.division import held_of
from bigr_jax.errors import UserError, nearest, one_of
from bigr_jax.train import checks, hosts, manifest, optimizers, overview, sharding, state
from bigr_jax.train import workdir as directories
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.coder import check_codes
from bigr_jax.train.environment import environment
from bigr_jax.train.guard import POLICIES
from bigr_jax.train.loop import Evaluator, Plan, fit, scope
from bigr_jax.train.step import make_step
from bigr_jax.train.workdir import Base
from bigr_jax.train.writer import Metrics

# Keys that `fill` writes; an experiment need not ask for them.
FILLED = ("data.channels", "data.num_classes", "data.examples")


class Run:
    """One experiment in one work directory, checked whole before anything is trained.

    base, stage  another run and the one stage that is this run's own: those that it builds on are
                 taken from `base`, as the ablations of a paper share a tokenizer
    sources      the data, by split; None: those that the config names
    devices      of its mesh; None: all that there are
    training     whether batches must divide over the mesh; to use what was trained they need not

    Raises UserError for a mistake in the config, unread keys, absent data, a work directory of
    another config, or a base whose stages are not what this config builds on.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        profile: tuple[int, int] | None = None,
        base: Run | None = None,
        stage: str | None = None,
        sources: Mapping[str, Source] | None = None,
        devices: Sequence[jax.Device] | None = None,
        training: bool = True,
    ) -> None:
        self.workdir, self.profile, self.base = workdir, profile, base
        self.config = configs.copy(config)
        view = configs.Audited(self.config)
        if sources is None:
            sources = {split: open_source(view.data, split) for split in ("train", "test")}
        else:
            _ = dict(view.data.items())
        if held := held_of(sources["train"]):
            sources = {**sources, "held": held.source}
        self.sources = sources
        fill(self.config.data, self.sources["train"])
        self.experiment = registry.load(view.slug)
        self.methods: dict[str, Method] = self.experiment.stages(view)
        self.mesh = sharding.make_mesh(dict(view.mesh.items()), devices)
        self._view = view
        self._variables: dict[str, Any] = {}
        self._writing = False
        self._plans: dict[str, tuple[Plan, Any]] = {}
        for name in self.methods:
            self._plans[name] = self._planned(name, training and stage in (None, name))
        _ = dict(view.logging.items()), view.variant
        # A stage that is switched off leaves its sections behind.
        off = [f"train.{name}" for name in self.config.train if name not in self.methods]
        off += [key for key in self.config if _switched_off(self.config[key])]
        configs.check_read(view, except_sections=("sample", "report", "study", *FILLED, *off))
        checks.refuse_other_config(workdir, self.config)
        self.own = self.stage_names(stage)
        if base is not None:
            self._check_base(base)
        hosts.agree(self._facts)

    def stage_names(self, stage: str | None) -> list[str]:
        """Returns [stage], or all for None. Raises UserError where there is no such stage."""
        if stage is not None and stage not in self.methods:
            raise UserError(
                f"--stage={stage} is no stage{nearest(stage, self.methods)}; "
                f"{self.config.slug} has: {', '.join(self.methods)}"
            )
        return list(self.methods) if stage is None else [stage]

    def write_description(self) -> None:
        """Writes what the run is: config.json, data.json, env.json, params.txt, and base.json.

        Raises UserError where the work directory cannot be made.
        """
        if jax.process_index():
            return
        directories.make(self.workdir)
        configs.save(self.config, os.path.join(self.workdir, "config.json"))
        files.write_json(os.path.join(self.workdir, "env.json"), environment())
        directories.write_data(self.workdir, self.sources)
        if self.base is not None:
            directories.write_base(self.workdir, Base(self.base.workdir, self.own[0]))
        text = [
            f"# {name}\n"
            + overview.table(boxed, jax.tree.map(lambda x: x.sharding, plan.abstract.variables))
            for name, (plan, boxed) in self._plans.items()
        ]
        files.write_text(os.path.join(self.workdir, "params.txt"), "\n\n".join(text) + "\n")

    def plan(self, name: str) -> Plan:
        """Returns all that training a stage needs."""
        return self._plans[name][0]

    def batch_spec(
        self, name: str, batch_size: int | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a stage's training batch, of another size where one is given."""
        size = batch_size or self.config.train[name].batch_size
        return state.batch_spec(self.sources["train"], size)

    def boxed(self, name: str) -> Any:
        """Returns the shapes of a stage's variables in linen's boxes, which name the axes."""
        return self._plans[name][1]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other writers out of the work directory, see `workdir`; it may be nested."""
        if self._writing:
            yield
            return
        with directories.writing(self.workdir):
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def train(self, name: str, report: bool = True) -> None:
        """Trains a stage from where it stands and measures it; leaves alone one that is done.

        report  whether what the method has to show belongs to that, or its test metrics alone

        Raises UserError where another process trains in this work directory, and as `fit` does.
        """
        with self.writing(), hosts.last_words(functools.partial(self._standing, name)):
            self._train(name, report)

    def _train(self, name: str, report: bool) -> None:
        plan = self.plan(name)
        if self.is_measured(name):
            hosts.say(f"{name}: already trained to step {plan.total}")
            return
        if self.is_adopted(name):
            hosts.say(f"{name}: its weights were given, it is not trained")
            return
        given = self.given(name)
        check_codes(self.sources["train"], self.methods, given)
        logging = self.config.logging
        with (
            Metrics(self.workdir, tensorboard=logging.tensorboard, wandb=logging.wandb) as metrics,
            self.checkpoints(name) as checkpoints,
        ):
            fit(plan, self.mesh, self.sources, given, checkpoints, metrics, self.workdir)
            seconds = checkpoints.meta().get("seconds")
        self.measure(name, seconds, report)

    def measure(
        self, name: str, seconds: float | None = None, report: bool = True
    ) -> dict[str, Any]:
        """Evaluates a finished stage on the test split and writes its results and, with `report`,
        what the method has to show.
        """
        plan = self.plan(name)
        # What is missing is said first.
        _ = self.given(name), self.variables(name)
        hosts.say(f"{name}: measuring what was trained")
        entry: dict[str, Any] = {"step": plan.total}
        old = self.results()["stages"].get(name, {})
        entry["seconds"] = old.get("seconds") if seconds is None else seconds
        entry["test"] = self.evaluate(name)
        if report and plan.method.report is not None:
            shown = self.report(name, plan.seed)
            entry["report"] = dict(shown.metrics)
            for title, picture in shown.images.items():
                if jax.process_index() == 0:
                    pictures.save_png(os.path.join(self.workdir, f"{title}.png"), picture)
        results = self.results()
        results["stages"][name] = entry
        if jax.process_index() == 0:
            files.write_json(os.path.join(self.workdir, "results.json"), results)
        return entry

    def evaluate(self, name: str) -> dict[str, float]:
        """Returns the metrics of a finished stage over the test split."""
        given, variables = self.given(name), self.variables(name)
        return Evaluator(self.plan(name), self.mesh, given)(variables, self.sources["test"])

    def measured(self, name: str) -> dict[str, float]:
        """Returns all numbers of a finished stage under this run's settings: its metrics over the
        test split and those of its report.

        Where both have a name, that of the report gets the prefix "report.".
        """
        found = self.evaluate(name)
        if self.methods[name].report is not None:
            for metric, value in self.report(name, self.config.seed).metrics.items():
                found[f"report.{metric}" if metric in found else metric] = float(value)
        return found

    def report(self, name: str, seed: int) -> Report:
        """Returns what a finished stage has to show, drawn with a seed."""
        make = self.methods[name].report
        if make is None:
            raise UserError(f"stage {name!r} of {self.config.slug} has no report")
        with scope(self.mesh), progress.slow(f"{name}: drawing and measuring for its report"):
            key = sharding.root_key(seed, self.mesh)
            return make(self.variables(name), key, self.sources, self.given(name))

    def results(self) -> dict[str, Any]:
        """Returns what results.json holds so far."""
        found = files.read_json(os.path.join(self.workdir, "results.json"))
        return found or {"slug": self.config.slug, "variant": self.config.variant, "stages": {}}

    def needs(self, name: str) -> list[str]:
        """Returns the stages that `name` builds on, directly or not, in the order of training."""
        found = set(self.methods[name].needs)
        for other in reversed(self.methods):
            found |= set(self.methods[other].needs) if other in found else set()
        return [other for other in self.methods if other in found]

    def given(self, name: str) -> dict[str, Any]:
        """Returns the variables of the stages that `name` builds on."""
        return {need: self.variables(need) for need in self.methods[name].needs}

    def variables(self, name: str) -> Any:
        """Returns the finished variables of a stage from its best or newest checkpoint, or those
        that were given to it.

        Raises UserError when the stage has not been trained to its end in this work directory.
        """
        if self.base is not None and name not in self.own:
            return self.base.variables(name)
        if name not in self._variables:
            self._variables[name] = self._read(name)
        return self._variables[name]

    def adopt(self, name: str, variables: Any) -> None:
        """Writes the variables of a stage that was trained elsewhere, on the host or on devices.

        Raises UserError where they are not those of this config, and where the stage has been
        trained here.
        """
        if self.step_of(name):
            raise UserError(
                f"stage {name!r} of {self.workdir} has been trained to step {self.step_of(name)}; "
                "give another --workdir"
            )
        wanted = manifest.leaves(self.plan(name).abstract.variables)
        if wrong := manifest.differences(manifest.leaves(variables), wanted):
            raise UserError(f"these are not the weights of stage {name!r}: {wrong}")
        with self._weights(name) as weights:
            weights.save(0, variables, {})
        self._variables.pop(name, None)

    @progress.slow("reading weights")
    def _read(self, name: str) -> Any:
        plan = self.plan(name)
        if self.is_adopted(name):
            with self._weights(name) as weights:
                return weights.restore(plan.abstract.variables)[0]
        if not self.is_finished(name):
            raise UserError(
                f"stage {name!r} is at step {self.step_of(name)} of {plan.total} in "
                f"{self.workdir}; train it first: bigr train --config=... "
                f"--workdir={self.workdir} --stage={name}"
            )
        with self.checkpoints(name) as checkpoints:
            finished, _ = checkpoints.restore(plan.abstract, hosts.first(checkpoints.best_step))
        section = getattr(self.config.train, name)
        return state.eval_variables(finished, section.optimizer.name)

    def is_measured(self, name: str) -> bool:
        """Whether a stage has been trained to its end and what it gave has been written."""
        entry = hosts.first(self.results)["stages"].get(name, {})
        return bool(entry.get("step") == self.plan(name).total)

    def is_finished(self, name: str) -> bool:
        """Whether a stage has been trained to its end, here or elsewhere."""
        return self.is_adopted(name) or self.step_of(name) >= self.plan(name).total

    def is_adopted(self, name: str) -> bool:
        """Whether a stage's variables were given to it, see `adopt`."""
        with self._weights(name) as weights:
            return hosts.first(weights.latest) is not None

    def step_of(self, name: str) -> int:
        """Returns the step of a stage's newest checkpoint, 0 without one."""
        with self.checkpoints(name) as checkpoints:
            return hosts.first(checkpoints.latest) or 0

    def checkpoints(self, name: str) -> Checkpoints:
        """Opens the checkpoints of a stage."""
        section = getattr(self.config.train, name)
        directory = os.path.join(os.path.abspath(self.workdir), name, "checkpoints")
        return Checkpoints(directory, keep=section.keep, best=section.best or None)

    def _weights(self, name: str) -> Checkpoints:
        return Checkpoints(os.path.join(os.path.abspath(self.workdir), name, "weights"), keep=1)

    @progress.slow("finding the shapes of a stage")
    def _planned(self, name: str, own: bool) -> tuple[Plan, Any]:
        method, section = self.methods[name], getattr(self._view.train, name)
        source, key = self.sources["train"], f"train.{name}"
        size = section.batch_size
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        held = held_of(source)
        checks.check_sizes(key, section, method, rows if own else 1, held.every if held else 1)
        total = durations.steps(
            section.duration, key=f"{key}.duration", batch_size=size, examples=len(source)
        )

        def resolve(text: str, key: str) -> int:
            return durations.steps(
                text, key=key, batch_size=size, examples=len(source), total=total
            )

        # The last evaluation batch is padded anyway, so that any number of rows will do.
        eval_size = -(-section.eval_batch_size // rows) * rows
        batch = self.batch_spec(name)
        given = {need: self.plan(need).abstract.variables for need in method.needs}
        boxed = state.abstract_variables(method, batch, given)
        make = method.optimizer or optimizers.make
        tx, schedule = make(section.optimizer, total, boxed["params"], resolve, f"{key}.optimizer")
        abstract = state.abstract_state(
            boxed, tx, section.ema, self.mesh, tuple(self._view.sharding)
        )
        every = {n: resolve(section[n], f"{key}.{n}") for n in ("log", "evaluate", "save")}
        if section.nonfinite not in POLICIES:
            raise one_of(f"{key}.nonfinite", section.nonfinite, POLICIES)
        if metric := section.best.removeprefix("-"):
            spec, root = state.batch_spec(source, eval_size), jax.random.key(0)
            found = jax.eval_shape(method.evaluate, abstract.variables, root, spec, given)
            if metric not in found:
                raise one_of(f"{key}.best", metric, found)
        plan = Plan(
            name=name,
            method=method,
            step=make_step(
                method,
                tx,
                schedule,
                accumulate=section.accumulate,
                ema=section.ema,
                skip=section.nonfinite == "skip",
            ),
            total=total,
            batch_size=size,
            eval_batch_size=eval_size,
            seed=self._view.seed,
            log_every=every["log"],
            eval_every=every["evaluate"],
            save_every=every["save"],
            optimizer=section.optimizer.name,
            best=bool(section.best),
            create=functools.partial(self._create, name, tx, abstract, batch),
            abstract=abstract,
            profile=self.profile,
            nonfinite=section.nonfinite,
            repeat=section.repeat,
        )
        return plan, boxed

    def _facts(self) -> dict[str, dict[str, Any]]:
        """What all processes of a run share."""
        told = {split: describe(source) for split, source in self.sources.items()}
        data = {f"{split}.{key}": v for split, facts in told.items() for key, v in facts.items()}
        own = {"config": configs.flat(self.config), "data": data}
        return {**own, "set of devices": hosts.devices()}

    def _standing(self, name: str) -> str:
        with self.checkpoints(name) as checkpoints:
            step = checkpoints.latest()
        if step is None:
            return f"nothing of stage {name!r} is saved yet; the same command starts it again"
        return (
            f"the checkpoint of step {step} of stage {name!r} is intact; the same command goes on "
            "from there"
        )

    def _create(self, name: str, tx: Any, abstract: Any, batch: Any, given: Given) -> TrainState:
        key = sharding.root_key(self.config.seed, self.mesh)
        with scope(self.mesh):
            return state.create(self.methods[name], tx, abstract, key, batch, given)

    def _check_base(self, base: Run) -> None:
        if base.mesh != self.mesh:
            raise UserError(
                f"mesh {dict(self.mesh.shape)} is not that of {base.workdir}, "
                f"{dict(base.mesh.shape)}, whose stages are taken"
            )
        for name in {need: None for own in self.own for need in self.needs(own)}:
            mine, theirs = (
                manifest.leaves(run.plan(name).abstract.variables) for run in (self, base)
            )
            for path in sorted(mine.keys() | theirs.keys()):
                if mine.get(path) != theirs.get(path):
                    raise UserError(
                        f"stage {name!r} is taken from {base.workdir}, but {path} is "
                        f"{theirs.get(path, 'absent')} there and {mine.get(path, 'absent')} here; "
                        "give the settings of that run, or train every stage here"
                    )


def _switched_off(section: Any) -> bool:
    return isinstance(section, ConfigDict) and section.get("enabled") is False


def opened(workdir: str, overrides: Mapping[str, str] | None = None, data: bool = False) -> Run:
    """Returns the run of a work directory, to use what was trained there, on its base if any.

    overrides  {"sample.cfg_scale": "2.5"}: settings that do not change what was learnt
    data       opens the data now; else only when they are read, so that they may be absent

    Raises UserError where there is no such work directory.
    """
    config = checks.overridden(directories.saved(workdir), overrides or {})
    on, base, stage = directories.read_base(workdir), None, None
    if on is not None:
        base, stage = opened(on.workdir, directories.mesh_of(config)), on.stage
    sources = None if data else directories.read_data(workdir, config.data)
    return Run(config, workdir, base=base, stage=stage, sources=sources, training=False)


def fill(section: ConfigDict, source: Source) -> None:
    """Fills in what 0 leaves to the data: `channels`, `num_classes` and `examples`.

    Raises UserError where the config says otherwise than the data.
    """
    found = {
        # A sequence has one.
        "channels": (source.info.image_shape[2:] or (1,))[0],
        "num_classes": source.info.num_classes,
        "examples": len(source),
    }
    for name, value in found.items():
        if section.get(name) not in (0, None, value):
            raise UserError(
                f"config.data.{name}={section[name]}, but {section.source} has {value}; "
                "0 takes what is there"
            )
        section[name] = value
