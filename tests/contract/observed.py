"""What is looked at of every experiment, made once for each, see `of`: its smoke run in this
process, and in a second one, started at once and working beside it, the first steps on two devices
and the study.

As a program, `python observed.py FOLDER REF ...`, this file is that second process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bigr_jax import config as configs
from bigr_jax import files, registry
from bigr_jax.api import TrainState
from bigr_jax.data import train_batches
from bigr_jax.lab import Lab
from bigr_jax.train import loop, sharding
from bigr_jax.train.run import Run
from bigr_jax.train.state import eval_variables
from bigr_jax.train.writer import Metrics

Types = dict[str, str]

# Batches whose losses are compared before and after; the step of the stop; steps on two devices,
# of which the first is taken at the rate at which a warmup begins, often 0.
COMPARED, STOP, SHARDED = 5, 2, 2


class NotTrained(Exception):
    """A promise could not be looked at, since another one is broken."""


class Course(NamedTuple):
    """Steps of a stage from its start; all on the host.

    losses  of the steps, in order
    """

    start: TrainState
    end: TrainState
    losses: list[float]


class Stage(NamedTuple):
    """What was seen of one stage.

    straight    all steps at one go
    again       the same by the same files, loaded and traced anew
    resumed     the same, stopped after STOP steps and taken up by `again` from the checkpoint
    sharded     a few steps from a state that the second process has too, see `shaken`
    later       losses of the first batches, with their keys, after the run
    tested      metrics over the test split before and after
    """

    straight: Course
    again: Course
    resumed: Course
    sharded: Course
    later: list[float]
    tested: tuple[dict[str, float], dict[str, float]]


class Second(NamedTuple):
    """The second process, and the folder where it leaves what it saw of one experiment."""

    process: subprocess.Popen[bytes]
    folder: Path

    def failure(self, what: str) -> str:
        """Waits for "devices" or "study", and returns its traceback, "" where it went well."""
        path = self.folder / f"{what}.done"
        while not path.exists():
            ended = self.process.poll() is not None
            if ended and not path.exists():
                log = self.folder.with_name("log").read_text("utf-8", "replace")
                raise AssertionError(f"the second process ended before its {what}: {log}")
            time.sleep(0.02)
        return path.read_text("utf-8")


class Observed(NamedTuple):
    """The smoke run of an experiment, and the second process.

    types   of the state that a step takes and returns, by path, by stage
    stages  what was seen of each, up to the first that cannot take a second step
    """

    run: Run
    types: dict[str, tuple[Types, Types]]
    stages: dict[str, Stage]
    second: Second


_seconds: dict[str, Second] = {}
# Emptied when the interpreter ends.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def start_second(refs: Sequence[str]) -> None:
    """Starts one second process for several experiments; `of` starts one for its own."""
    folder = Path(_temporary())
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(folder / "log", "wb") as log:
        words = [sys.executable, __file__, str(folder), *refs]
        process = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
    # Before its folder goes: where few tests are run, it is not done when they are.
    atexit.register(_end, process)
    for place, ref in enumerate(refs):
        _seconds[ref] = Second(process, folder / str(place))


@functools.cache
def of(ref: str) -> Observed:
    """Trains the smoke variant, twice and once with a stop, and starts the second process; once."""
    if ref not in _seconds:
        start_second([ref])
    config, workdir = configs.load(f"{ref}:smoke"), _temporary()
    # What Python keeps beside the checkpoint, in a closure or a module, the second does not share.
    first, again = Run(config, workdir), Run(config, workdir)
    types: dict[str, tuple[Types, Types]] = {}
    found: dict[str, Stage] = {}
    for name in first.methods:
        made = Trainer(first, name, first.given(name))
        types[name] = made.types()
        if types[name][0] != types[name][1]:
            break
        found[name] = _stage(made, again, {n: stage.straight.start for n, stage in found.items()})
    return Observed(first, types, found, _seconds[ref])


def stages(ref: str) -> dict[str, Stage]:
    """Returns what was seen of every stage; NotTrained where one cannot take a second step."""
    found = of(ref)
    for name in found.run.methods:
        if name not in found.stages:
            raise NotTrained(f"stage {name!r} cannot take a second step, see check_one_program")
    return found.stages


class Trainer:
    """One stage of one run: its first state, its batches, and its step, traced.

    given  the variables of the stages that it builds on
    like   another one; where both take the same step, that is compiled once
    """

    def __init__(
        self, run: Run, name: str, given: Mapping[str, Any], like: Trainer | None = None
    ) -> None:
        self.run, self.plan, self.given, self.like = run, run.plan(name), given, like
        self.where = jax.tree.map(lambda leaf: leaf.sharding, self.plan.abstract)
        self.root = jax.device_put(jax.random.key(self.plan.seed), sharding.replicated(run.mesh))
        with (
            contextlib.closing(
                train_batches(run.sources["train"], self.plan.batch_size, self.plan.seed)
            ) as host,
            loop.scope(run.mesh),
        ):
            batches = itertools.islice(host, self.plan.total)
            self.batches = list(loop.device_batches(batches, run.mesh))
            state = self.plan.create(given)
            self.start = jax.device_get(state)
            self.traced = loop.trace_step(self.plan, state, self.batches[0], self.root, given)
            self.lowered = self.traced.lower()

    def types(self) -> tuple[Types, Types]:
        """Returns the types of the state that a step takes, and of the one that it returns."""
        taken = jax.tree.unflatten(self.traced.in_tree, jax.tree.leaves(self.traced.in_avals))
        return _types(taken[0][0]), _types(self.traced.out_info[0])

    @functools.cached_property
    def program(self) -> loop.Program:
        """The step, compiled."""
        text = self.lowered.as_text()
        # A call back to Python reads alike whatever function it calls.
        if self.like is not None and "callback" not in text and self.like.lowered.as_text() == text:
            return self.like.program
        return loop.Program(self.lowered.compile(), 0)

    def course(self, start: TrainState, steps: int, given: Mapping[str, Any]) -> Course:
        """Returns what `steps` steps make of a state, taken without `fit`."""
        state, losses = jax.device_put(start, self.where), []
        for batch in self.batches[:steps]:
            state, metrics = self.program.step(state, batch, self.root, given)
            losses.append(float(metrics["loss"]))
        return Course(start, jax.device_get(state), losses)

    def sharded(self, start: TrainState, given: Mapping[str, Any]) -> Course:
        """Returns the state after SHARDED steps from a shaken start, and one loss more: of it."""
        begin = shaken(start, self.plan.total - SHARDED - 1)
        longer = self.course(begin, SHARDED + 1, given)
        return self.course(begin, SHARDED, given)._replace(losses=longer.losses)

    def later(self, end: TrainState) -> list[float]:
        """Returns the losses that the first batches have after training, with the same keys."""
        losses = []
        for number, batch in enumerate(self.batches[:COMPARED]):
            state = jax.device_put(end._replace(step=np.int32(number)), self.where)
            # The step that this takes is thrown away.
            _, metrics = self.program.step(state, batch, self.root, self.given)
            losses.append(float(metrics["loss"]))
        return losses

    def fitted(self, start: TrainState, total: int) -> TrainState:
        """Returns the state after `fit` up to step `total`, from the checkpoint where one is."""
        run = self.run
        # Measuring is compiled and timed elsewhere, and leaves no trace in the state.
        method = self.plan.method._replace(evaluate=lambda *batch: {})
        plan = self.plan._replace(
            create=lambda given: jax.device_put(start, self.where),
            method=method,
            total=total,
            log_every=1,
            eval_every=0,
            save_every=0,
        )
        with (
            contextlib.redirect_stderr(io.StringIO()),
            run.checkpoints(plan.name) as checkpoints,
            Metrics(run.workdir) as metrics,
        ):
            given = (run.mesh, run.sources, self.given, checkpoints, metrics, run.workdir)
            return jax.device_get(loop.fit(plan, *given, program=self.program))

    def tested(self, state: TrainState, evaluate: loop.Evaluator) -> dict[str, float]:
        """Returns the test metrics of the parameters themselves: an average lags behind."""
        variables = eval_variables(state._replace(ema=None), self.plan.optimizer)
        placed = jax.device_put(variables, self.where.variables)
        return evaluate(placed, self.run.sources["test"])


def _stage(made: Trainer, again: Run, starts: Mapping[str, TrainState]) -> Stage:
    """Trains one stage in all the ways that are compared; what is compiled is shared.

    starts  states of the stages before it, untrained
    """
    name, total, start = made.plan.name, made.plan.total, made.start
    straight = made.course(start, total, made.given)
    later = made.later(straight.end)
    evaluate = loop.Evaluator(made.plan, made.run.mesh, made.given)
    tested = made.tested(start, evaluate), made.tested(straight.end, evaluate)
    made.fitted(start, STOP)
    # Resumed before it starts anew: what Python alone remembers must be lost.
    other = Trainer(again, name, again.given(name), like=made)
    end = other.fitted(start, total)
    rows = Path(again.workdir, "metrics.jsonl").read_text("utf-8").splitlines()
    logged = [
        row["loss"] for row in map(json.loads, rows) if row["stage"] == name and "loss" in row
    ]
    repeated = other.course(other.start, total, other.given)
    given = untrained(made.run, name, starts)
    first = jax.device_get(made.plan.create(given)) if given else start
    few = made.sharded(first, given)
    return Stage(straight, repeated, Course(start, end, logged), few, later, tested)


def untrained(run: Run, name: str, starts: Mapping[str, TrainState]) -> dict[str, Any]:
    """Returns what a stage would be given if those before it had stayed at their start."""
    found = {}
    for need in run.methods[name].needs:
        plan = run.plan(need)
        where = jax.tree.map(lambda leaf: leaf.sharding, plan.abstract.variables)
        found[need] = jax.device_put(eval_variables(starts[need], plan.optimizer), where)
    return found


def shaken(start: TrainState, step: int) -> TrainState:
    """Returns a start with a little noise on the parameters and at another step, since parameters
    that begin as zero, and losses that wait for a step, would hide others.
    """

    def noisy(path: Any, leaf: Any) -> Any:
        if leaf.dtype.kind != "f":
            return leaf
        rng = np.random.default_rng(zlib.crc32(sharding.path_name(path).encode()))
        return (leaf + 0.02 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(noisy, start.variables["params"])
    variables = {**start.variables, "params": params}
    return start._replace(step=np.int32(max(step, 0)), variables=variables)


def compared(name: str, course: Course) -> dict[str, np.ndarray]:
    """Returns what must agree on one device and on two, by path."""
    found = {"losses": np.array(course.losses), **named(course.end._replace(ema=None))}
    numbers = {path: leaf for path, leaf in found.items() if leaf.dtype.kind in "fiub"}
    return {f"{name}/{path}": leaf.astype(np.float64) for path, leaf in numbers.items()}


def named(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _types(tree: Any) -> Types:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        sharding.path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    }


def see_devices(ref: str, folder: Path) -> None:
    """Leaves in devices.npz what the first steps give on the devices of this process."""
    run = Run(configs.load(f"{ref}:smoke"), str(folder / "devices"))
    starts: dict[str, TrainState] = {}
    arrays: dict[str, np.ndarray] = {}
    for name in run.methods:
        made = Trainer(run, name, untrained(run, name, starts))
        starts[name] = made.start
        arrays |= compared(name, made.sharded(made.start, made.given))
    np.savez(folder / "devices.npz", allow_pickle=False, **arrays)


def see_study(ref: str, folder: Path) -> None:
    """Leaves in results/ what the study shows; checkpoints between its steps are seen elsewhere."""
    config = configs.load(f"{ref}:smoke")
    for stage in config.train.values():
        stage.save = "100%"
    lab = Lab(config, str(folder / "study"), str(folder / "results"))
    registry.load(config.slug).study(config, lab)
    lab.write()


def main(folder: Path, refs: Sequence[str]) -> None:
    """Leaves in FOLDER/0, FOLDER/1, ... what was seen of each, or how that failed."""
    for place, ref in enumerate(refs):
        mine = folder / str(place)
        mine.mkdir(parents=True)
        for what, see in (("devices", see_devices), ("study", see_study)):
            begin, failure = time.perf_counter(), ""
            try:
                see(ref, mine)
            except Exception:
                failure = traceback.format_exc()
            print(f"{ref}: {what} in {time.perf_counter() - begin:.1f} s", flush=True)
            files.write_text(mine / f"{what}.done", failure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _temporary() -> str:
    _folders.append(tempfile.TemporaryDirectory(prefix="bigr-contract-"))
    return _folders[-1].name
