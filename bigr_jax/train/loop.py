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

from bigr_jax.api import Array, Given, Method, TrainState
from bigr_jax.data import Source, eval_batches, train_batches
from bigr_jax.errors import UserError
from bigr_jax.ops import flops
from bigr_jax.train import sharding
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.state import eval_variables
from bigr_jax.train.status import Status
from bigr_jax.train.step import Step
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
    Raises Interrupted after SIGINT or SIGTERM, with the state saved; UserError when the loss or the
    gradient is not finite.
    """
    # 1. the newest good checkpoint of this work directory; 2. a fresh state
    begun, spent = time.perf_counter(), 0.0
    if checkpoints.latest() is None:
        state = plan.create(given)
    else:
        state, meta = checkpoints.restore(plan.abstract)
        spent = meta.get("seconds", 0.0)
    start = int(state.step)
    metrics.rewind(plan.name, start)
    if start >= plan.total:
        return state
    root = jax.device_put(jax.random.key(plan.seed), sharding.replicated(mesh))
    batches = device_batches(_host_batches(plan, sources["train"], start), mesh)
    status = Status(plan.name, plan.total)
    with (
        scope(mesh),
        stopping() as stop,
        contextlib.closing(batches),
        contextlib.closing(status),
        profiler(plan.profile, f"{directory}/{plan.name}/profile") as profile,
    ):
        batch = next(batches)
        if program is None:
            status.compiling("the train step")
            begin = time.perf_counter()
            program = compile_step(plan, state, batch, root, given)
            status.compiled(time.perf_counter() - begin)
        evaluate, log = Evaluator(plan, mesh, given), _Log(plan, metrics, status, sources["train"])
        each = program.operations / mesh.size
        status.start(start, plan.batch_size, each, jax.devices()[0])
        for step in range(start + 1, plan.total + 1):
            profile(step, state)
            with jax.transfer_guard("disallow"):
                state, now = program.step(state, batch, root, given)
            begin = time.perf_counter()
            if step < plan.total and not stop:
                batch = next(batches)
            log.add(step, now, waited=time.perf_counter() - begin)
            last = step == plan.total
            latest: dict[str, float] = {}
            if last or _due(step, plan.eval_every):
                log.flush()
                latest = evaluate(eval_variables(state, plan.optimizer), sources["test"])
                metrics.write(plan.name, step, {f"test/{k}": v for k, v in latest.items()})
                status.message(_sentence(plan.name, step, latest))
            # Looked at once, since a signal may come at any instant: what is said to be saved is.
            stopped = bool(stop)
            if last or stopped or _due(step, plan.save_every) or (plan.best and latest):
                log.flush()
                seconds = round(spent + time.perf_counter() - begun, 1)
                meta = {"step": step, "examples": step * plan.batch_size, "seconds": seconds}
                checkpoints.save(step, state, meta, latest)
            if stopped:
                checkpoints.wait()
                raise Interrupted(
                    stop[0],
                    f"stopped at step {step} of {plan.total} of stage {plan.name!r}, saved; "
                    "the same command goes on from there",
                )
    checkpoints.wait()
    return state


def _host_batches(plan: Plan, source: Source, start: int) -> Iterator[HostBatch]:
    return train_batches(
        source,
        plan.batch_size,
        plan.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


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
    """

    def __init__(self, plan: Plan, mesh: Mesh, given: Given) -> None:
        self._plan, self._mesh, self._given = plan, mesh, given
        self._run = jax.jit(plan.method.evaluate, out_shardings=sharding.replicated(mesh))

    def __call__(self, variables: Any, source: Source) -> dict[str, float]:
        key = jax.device_put(jax.random.key(self._plan.seed), sharding.replicated(self._mesh))
        sums: dict[str, np.ndarray] = {}
        batches = eval_batches(
            source,
            self._plan.eval_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        placed = device_batches(batches, self._mesh)
        with scope(self._mesh), contextlib.closing(placed):
            for index, batch in enumerate(placed):
                found = self._run(variables, jax.random.fold_in(key, index), batch, self._given)
                for name, pair in jax.device_get(dict(found)).items():
                    sums[name] = sums.get(name, np.zeros(2)) + np.array(pair, np.float64)
        return {name: float(value / max(weight, 1e-12)) for name, (value, weight) in sums.items()}


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
    """Yields global arrays, rows over data and fsdp, from each host's own rows."""
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

    def __init__(self, plan: Plan, metrics: Metrics, status: Status, source: Source) -> None:
        self._plan, self._metrics, self._status, self._source = plan, metrics, status, source
        self._pending: tuple[int, Any, float] | None = None

    def add(self, step: int, values: Mapping[str, Array], waited: float) -> None:
        self.flush()
        self._pending = step, values, waited

    def flush(self) -> None:
        if self._pending is None:
            return
        (step, values, waited), self._pending = self._pending, None
        plan = self._plan
        numbers = {name: float(value) for name, value in jax.device_get(dict(values)).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(numbers.get(name, 0.0)):
                raise UserError(
                    f"the {name} of stage {plan.name!r} is {numbers[name]} at step {step}; what is "
                    "saved is intact. Start in another --workdir with a lower optimizer.lr, or "
                    "with optimizer.clip"
                )
        self._status.step(step, numbers["loss"], waited)
        if _due(step, plan.log_every) or step == plan.total:
            if lost := getattr(self._source, "corrupt", 0):
                numbers["corrupt_examples"] = float(lost)
            self._metrics.write(plan.name, step, numbers)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _sentence(stage: str, step: int, values: Mapping[str, float]) -> str:
    listed = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"{stage} step {step}: test  {listed}"
