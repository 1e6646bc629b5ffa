"""The one training loop: every stage of every method goes through `fit`."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from bigr_jax import interrupts, progress
from bigr_jax.api import Array, Given, Method, Sum, TrainState
from bigr_jax.data import Source, eval_batches, train_batches
from bigr_jax.errors import UserError
from bigr_jax.ops import flops
from bigr_jax.train import diagnosis, guard, hosts, memory, sharding
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.guard import Bad, Course, NotFinite
from bigr_jax.train.state import eval_variables
from bigr_jax.train.status import Status
from bigr_jax.train.step import CHECKED, Step, all_finite, step_before
from bigr_jax.train.writer import Metrics

HostBatch = Mapping[str, np.ndarray]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has saved its state; `signum` says by
    what.
    """

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(text)
        self.signum = signum


class Plan(NamedTuple):
    """All that `fit` needs to know of a stage.

    total, log_every, eval_every, save_every   in steps; 0 = never
    optimizer  its name: schedule-free ones are measured at their own average
    best       whether the best evaluation is looked for: each is then saved
    create     (given) -> the initial TrainState
    abstract   TrainState of shapes and placements, for restoring
    profile    (first, last) step to trace, or None
    nonfinite  one of `guard.POLICIES`
    repeat     how often an example stands in a row
    """

    name: str
    method: Method
    step: Step
    total: int
    batch_size: int
    eval_batch_size: int
    seed: int
    log_every: int
    eval_every: int
    save_every: int
    optimizer: str
    best: bool
    create: Callable[[Given], TrainState]
    abstract: TrainState
    profile: tuple[int, int] | None = None
    nonfinite: str = "raise"
    repeat: int = 1


class Program(NamedTuple):
    """A stage's train step, compiled.

    step        (state, batch, root key, given) -> (state, metrics); the state is donated
    operations  floating-point operations of a step over all devices
    """

    step: jax.stages.Compiled
    operations: int


def fit(
    plan: Plan,
    mesh: Mesh,
    sources: Mapping[str, Source],
    given: Given,
    checkpoints: Checkpoints,
    metrics: Metrics,
    directory: str,
    program: Program | None = None,
) -> TrainState:
    """Trains a stage from its newest checkpoint to its last step and returns the state.

    The order within a step is fixed, since resuming depends on it: step, evaluate, save.
    program  the plan's, where it is compiled already
    Raises Interrupted after SIGINT or SIGTERM, with the state saved; UserError where the loss, the
    gradient or the state is not finite and `plan.nonfinite` does not say to go on.
    """
    begun = time.perf_counter()
    state, meta = _newest(plan, given, checkpoints)
    metrics.rewind(plan.name, int(state.step))
    if int(state.step) >= plan.total:
        return state
    status = Status(plan.name, plan.total)
    with (
        scope(mesh),
        stopping() as stop,
        contextlib.closing(status),
        profiler(plan.profile, f"{directory}/{plan.name}/profile") as profile,
    ):
        spent = meta.get("seconds", 0.0) - begun
        fitting = _Fitting(plan, mesh, sources, given, checkpoints, metrics, status, stop, spent)
        fitting.program, fitting.course = program, Course.of(meta)
        while True:
            try:
                return fitting.run(state, profile)
            except NotFinite as caught:
                state = fitting.gone_back(caught.bad)


def _newest(
    plan: Plan, given: Given, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the newest good checkpoint of this work directory, or else a fresh state."""
    if hosts.first(checkpoints.latest) is None:
        return plan.create(given), {}
    return checkpoints.restore(plan.abstract)


class _Fitting:
    """A stage on its way, under the mesh of `scope`."""

    def __init__(
        self,
        plan: Plan,
        mesh: Mesh,
        sources: Mapping[str, Source],
        given: Given,
        checkpoints: Checkpoints,
        metrics: Metrics,
        status: Status,
        stop: list[int],
        spent: float,
    ) -> None:
        self._plan, self._mesh, self._sources, self._given = plan, mesh, sources, given
        self._checkpoints, self._metrics, self._status = checkpoints, metrics, status
        # seconds of earlier runs, less when this one began
        self._stop, self._spent = stop, spent
        self._root = sharding.root_key(plan.seed, mesh)
        self._evaluate = Evaluator(plan, mesh, given, shown=False)
        self._log = _Log(plan, metrics, status, sources["train"], self)
        self._finite = jax.jit(all_finite, out_shardings=sharding.replicated(mesh))
        self.program: Program | None = None
        self.course = Course()

    def run(self, state: TrainState, profile: Callable[[int, TrainState], None]) -> TrainState:
        """Returns the state after the last step; raises NotFinite to be continued elsewhere."""
        plan, self._state, start = self._plan, state, int(state.step)
        source, first = self._sources["train"], start + self.course.offset
        host = _host_batches(plan, source, first, self._mesh)
        with contextlib.closing(device_batches(host, self._mesh)) as batches:
            batch = next(batches)
            with self._explained(batch):
                program = self._compiled(batch)
            each = program.operations / self._mesh.size
            self._status.start(start, plan.batch_size, each, jax.devices()[0])
            for step in range(start + 1, plan.total + 1):
                profile(step, self._state)
                with jax.transfer_guard("disallow"), self._explained(batch):
                    self._state, now = program.step(self._state, batch, self._root, self._given)
                seen, begin = batch, time.perf_counter()
                # Of several processes, the others may not know yet that one is to stop.
                if step < plan.total and not (self._stop and jax.process_count() == 1):
                    batch = next(batches)
                with self._explained(seen):
                    self._log.add(step, seen, now, waited=time.perf_counter() - begin)
                self._after(step)
        self._checkpoints.wait()
        if skipped := self.course.sentence():
            self._status.message(f"{plan.name}: {skipped}")
        return self._state

    def _explained(self, batch: Any) -> contextlib.AbstractContextManager[None]:
        step = memory.step_of(self._plan, batch, self._given, self._mesh)
        return memory.explained(step, self.program.step if self.program else None)

    def _compiled(self, batch: Any) -> Program:
        if self.program is None:
            self._status.compiling("the train step")
            begin = time.perf_counter()
            self.program = compile_step(self._plan, self._state, batch, self._root, self._given)
            self._status.compiled(time.perf_counter() - begin)
        return self.program

    def _after(self, step: int) -> None:
        """Evaluates and saves, each if it is time to, and stops if that was asked for."""
        plan, last = self._plan, step == self._plan.total
        # Beside the writing of a checkpoint one step is taken, and counts when that is on disk: so
        # no kill costs more than `save_every`.
        self._checkpoints.settle()
        latest: dict[str, float] = {}
        if last or _due(step, plan.eval_every):
            self._log.flush()
            variables = eval_variables(self._state, plan.optimizer)
            latest = self._evaluate(variables, self._sources["test"])
            self._metrics.write(plan.name, step, {f"test/{k}": v for k, v in latest.items()})
            self._status.message(_sentence(plan.name, step, latest))
        # Looked at once, since a signal may come at any instant: what is said to be saved is.
        stopped = hosts.stop_agreed(self._stop)
        if last or stopped or _due(step, plan.save_every) or (plan.best and latest):
            self._log.flush()
            self._save(step, latest)
        if stopped:
            self._checkpoints.wait()
            raise Interrupted(
                stopped,
                f"stopped at step {step} of {plan.total} of stage {plan.name!r}, saved; "
                "the same command goes on from there",
            )

    def _save(self, step: int, latest: Mapping[str, float]) -> None:
        # What an optimizer makes of a finite gradient may not be finite; it must not be kept.
        if not self._finite((self._state.variables, self._state.ema)):
            raise NotFinite(Bad(step, {}, {}))
        meta = {
            "step": step,
            "examples": (step + self.course.offset) * self._plan.batch_size,
            "seconds": round(self._spent + time.perf_counter(), 1),
            **self.course.meta(),
        }
        self._checkpoints.save(step, self._state, meta, latest)

    def not_finite(self, bad: Bad) -> None:
        """Answers the log about a bad step; raises NotFinite where it cannot be skipped."""
        if self._plan.nonfinite != "skip":
            raise NotFinite(bad)
        begins = bad.step - 1 not in self.course.skipped
        self.course = self.course.skip(bad.step)
        if begins or self.course.in_a_row() > guard.LIMIT:
            why = self._why(bad)
            if self.course.in_a_row() > guard.LIMIT:
                raise UserError(f"{guard.LIMIT} steps in a row were skipped; {why}")
            self._status.message(f"{why}; skipped")

    def gone_back(self, bad: Bad) -> TrainState:
        """Returns the newest checkpoint's state, from which `run` passes over the data since.

        Raises UserError where the policy is another, or it has gone back too often.
        """
        plan, why = self._plan, self._why(bad)
        if plan.nonfinite != "rollback":
            raise UserError(
                f"{why}; what is saved is intact. Start in another --workdir with a lower "
                f"optimizer.lr, or with optimizer.clip; or go on here with train.{plan.name}."
                "nonfinite=skip or rollback"
            )
        if self.course.rollbacks == guard.LIMIT:
            raise UserError(f"{why}, after going back {guard.LIMIT} times")
        with contextlib.suppress(UserError):
            self._checkpoints.wait()
        state, _ = _newest(plan, self._given, self._checkpoints)
        step = int(state.step)
        self.course = self.course.back(bad.step, step)
        self._log.forget()
        self._metrics.rewind(plan.name, step)
        self._status.message(
            f"{why}; back to step {step}, and on with the data after that of step {bad.step}"
        )
        return state

    def _why(self, bad: Bad) -> str:
        plan, where = self._plan, sharding.replicated(self._mesh)
        if not bad.batch:
            kept = {"variables": self._state.variables, "ema": self._state.ema}
            paths = diagnosis.leaves_not_finite(kept, where)
            return f"step {bad.step} of stage {plan.name!r} left what is not finite: {paths}"
        state = step_before(self._state, bad.step)
        found = diagnosis.first_not_finite(
            plan.step, state, bad.batch, self._root, self._given, bad.metrics, where
        )
        names = [n for n in CHECKED if not math.isfinite(bad.metrics.get(n, 0.0))] or ["state"]
        value = bad.metrics.get(names[0], math.nan)
        return (
            f"the {names[0]} of stage {plan.name!r} is {value} at step {bad.step}; the first that "
            f"is not finite is {found}"
        )


def _host_batches(plan: Plan, source: Source, start: int, mesh: Mesh) -> Iterator[HostBatch]:
    share = hosts.share(mesh)
    return train_batches(source, plan.batch_size, plan.seed, start, share, repeat=plan.repeat)


def trace_step(
    plan: Plan, state: TrainState, batch: Any, root: Array, given: Given
) -> jax.stages.Traced:
    """Returns the train step of a stage, traced for arguments of these shapes and placements.

    batch  as `device_batches` yields it
    root   the key of the whole stage, on every device of the mesh
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, plan.abstract)
    where = next(iter(jax.tree.leaves(shardings))).mesh
    outputs = (shardings, sharding.replicated(where))
    step = jax.jit(plan.step, donate_argnums=0, out_shardings=outputs)
    return step.trace(state, batch, root, given)


def compile_step(plan: Plan, state: TrainState, batch: Any, root: Array, given: Given) -> Program:
    """Returns what `trace_step` returns, compiled; the mesh is current, see `scope`."""
    traced = trace_step(plan, state, batch, root, given)
    return Program(traced.lower().compile(), flops.count(traced.jaxpr))


class Evaluator:
    """Measures a stage over a whole source; the program is compiled once.

    Called with (variables, source) it returns {name: value}: sums over all batches and hosts,
    divided once.

    shown  whether it says how far it is, where it takes long
    """

    def __init__(self, plan: Plan, mesh: Mesh, given: Given, shown: bool = True) -> None:
        self._plan, self._mesh, self._given, self._shown = plan, mesh, given, shown
        self._run = jax.jit(plan.method.evaluate, out_shardings=sharding.replicated(mesh))

    def __call__(self, variables: Any, source: Source) -> dict[str, float]:
        key = sharding.root_key(self._plan.seed, self._mesh)
        sums: dict[str, np.ndarray] = {}
        batches = eval_batches(source, self._plan.eval_batch_size, hosts.share(self._mesh))
        placed = device_batches(batches, self._mesh)
        with scope(self._mesh), contextlib.closing(placed):
            total = -(-len(source) // self._plan.eval_batch_size)
            what = f"{self._plan.name}: measuring on {len(source)} examples"
            shown = progress.steps(placed, total, what) if self._shown else placed
            for index, batch in enumerate(shown):
                found = self._run(variables, jax.random.fold_in(key, index), batch, self._given)
                for name, pair in jax.device_get(dict(found)).items():
                    sums[name] = sums.get(name, 0.0) + np.array(pair, np.float64)
        return {name: Sum(*pair).metric() for name, pair in sums.items()}


@contextlib.contextmanager
def scope(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh and the table of logical names current, so that linen's constraints take
    effect.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LINEN_RULES):
        yield


def device_batches(
    batches: Iterator[HostBatch], mesh: Mesh
) -> Generator[dict[str, Array], None, None]:
    """Yields global arrays, rows over fsdp and data, from each host's own rows."""
    where = sharding.batch_sharding(mesh)
    try:
        for batch in batches:
            yield {
                name: jax.make_array_from_process_local_data(where, value)
                for name, value in batch.items()
            }
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """Yields a list that holds the signal's number once SIGINT or SIGTERM has asked for a stop.

    A second signal interrupts at once. Outside the main thread signals are left alone.
    """
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        interrupts.heard()
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    before = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                before[signum] = signal.signal(signum, ask)
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def profiler(
    window: tuple[int, int] | None, directory: str
) -> Iterator[Callable[[int, TrainState], None]]:
    """Yields a function (step, state), to be called before each step, that traces the steps of a
    window into `directory`; training may begin or end within it.
    """
    tracing = False

    def before(step: int, state: TrainState) -> None:
        nonlocal tracing
        wanted = window is not None and window[0] <= step <= window[1]
        if wanted == tracing:
            return
        # The device is still at work on the steps before.
        jax.block_until_ready(state)
        if wanted:
            jax.profiler.start_trace(directory)
        else:
            jax.profiler.stop_trace()
        tracing = wanted

    try:
        yield before
    finally:
        if tracing:
            jax.profiler.stop_trace()


class _Log:
    """Looks at a step's metrics one step late, while the device works on the next; `flush` at
    once.
    """

    def __init__(
        self,
        plan: Plan,
        metrics: Metrics,
        status: Status,
        source: Source,
        fitting: _Fitting,
    ) -> None:
        self._plan, self._metrics, self._status, self._source = plan, metrics, status, source
        self._fitting = fitting
        self._pending: tuple[int, Any, Any, float] | None = None

    def add(self, step: int, batch: Any, values: Mapping[str, Array], waited: float) -> None:
        self.flush()
        self._pending = step, batch, values, waited

    def forget(self) -> None:
        self._pending = None

    def flush(self) -> None:
        if self._pending is None:
            return
        (step, batch, values, waited), self._pending = self._pending, None
        plan = self._plan
        numbers = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        if not numbers.pop("finite"):
            self._fitting.not_finite(Bad(step, batch, numbers))
        self._status.step(step, numbers["loss"], waited)
        if _due(step, plan.log_every) or step == plan.total:
            if lost := getattr(self._source, "corrupt", 0):
                numbers["corrupt_examples"] = float(lost)
            self._metrics.write(plan.name, step, {**numbers, **self._fitting.course.metrics()})


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _sentence(stage: str, step: int, values: Mapping[str, float]) -> str:
    listed = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"{stage} step {step}: test  {listed}"
