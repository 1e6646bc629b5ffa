"""What every experiment keeps, as functions of what one types: a slug, or the path of its config.

Each raises AssertionError saying what was promised and what was found. What they look at is made
once per experiment, see `observed`: its smoke run in this process, and in a second one, started at
once and working beside it, the first steps on two devices and the study.

As a program, `python checks.py FOLDER REF ...`, this file is that second process.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tokenize
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from bigr_jax import config as configs
from bigr_jax import files, registry
from bigr_jax.api import TrainState
from bigr_jax.cli import command
from bigr_jax.data import train_batches
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.lab import Lab
from bigr_jax.train import loop, sharding
from bigr_jax.train.run import Run
from bigr_jax.train.state import eval_variables
from bigr_jax.train.writer import Metrics

Types = dict[str, str]

HERE = Path(__file__).resolve().parent
RECIPE_LINES, CONFIG_LINES = 200, 80
# Batches whose losses are compared before and after; the step of the stop; steps on two devices,
# of which the first is taken at the rate at which a warmup begins, often 0.
COMPARED, STOP, SHARDED = 5, 2, 2
CLOSE = 1e-5
# A gradient so small beside the others is rounding; where that is all, none is meant to be there.
ROUNDING = 1e-6
# Patterns of the parameters that no gradient reaches, by slug; each matches one at least.
FROZEN = {
    "bigr": (
        # While no image is beyond the hinge, the slopes of real and drawn ones cancel exactly.
        "^discriminator/conv_out/bias$",
        # It moves all scores of a query alike, which a softmax does not see.
        "/middle_attention/k/bias$",
    ),
}


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


def card(ref: str) -> registry.Card:
    """Returns what the experiment of a config says of itself."""
    return registry.describe(configs.load(f"{ref}:smoke").slug)


def golden(ref: str) -> Path:
    """Returns where the shapes of the parameters are on record: beside this file, or beside a
    config of one's own.
    """
    own = ref.endswith(".py")
    return Path(ref).with_suffix(".txt") if own else HERE / f"{ref}.txt"


def check_docstring(ref: str) -> None:
    """Title with paper and year, Claim, Evidence, and a Command that reads as one of `bigr`'s."""
    found = card(ref)
    title = found.doc.partition("\n\n")[0]
    form = r"[^:]+: .*\((19|20)\d\d, .*\S\)\."
    assert re.fullmatch(form, title, re.DOTALL), f"{title!r} is not 'Name: what (year, source).'"
    for field in ("claim", "evidence"):
        text = getattr(found, field)
        assert len(text) > 20, f"{field.capitalize()} says too little: {text!r}"
    words = shlex.split(found.command)
    assert words[:1] == ["bigr"] and len(words) > 1, f"Command is not of bigr: {found.command!r}"
    try:
        chosen = importlib.import_module(f"bigr_jax.cli.{words[1]}").COMMAND
        slug = command.parse(chosen, words[2:]).config().slug
    except Exception as error:
        raise AssertionError(f"Command {found.command!r} does not parse: {error}") from error
    named = registry.describe(slug).path
    assert named == found.path, f"Command {found.command!r} is about {named}"


def check_files(ref: str) -> None:
    """An experiment fits 200 lines, its config 80 lines of code."""
    recipe, settings = card(ref).path, registry.config_path(ref)
    lines = len(Path(recipe).read_text("utf-8").splitlines())
    assert lines <= RECIPE_LINES, f"{recipe} has {lines} lines, more than {RECIPE_LINES}"
    if Path(settings).resolve() != Path(recipe).resolve():
        lines = code_lines(settings)
        assert lines <= CONFIG_LINES, f"{settings} has {lines} code lines, over {CONFIG_LINES}"


def check_variants(ref: str) -> None:
    """Every variant loads, smoke and small among them."""
    variants = registry.run_file(registry.config_path(ref)).VARIANTS
    assert {"smoke", "small"} <= set(variants), f"smoke and small are wanted, found {variants}"
    for variant in variants:
        assert configs.load(f"{ref}:{variant}").variant == variant


def check_shapes(ref: str) -> None:
    """The parameters are those on record; BIGR_REGENERATE=1 records them anew."""
    found, path = described(observed(ref).run), golden(ref)
    if os.environ.get("BIGR_REGENERATE") == "1":
        path.write_text(found, "utf-8")
    assert path.exists(), f"{path} is missing; BIGR_REGENERATE=1 writes it"
    wanted = path.read_text("utf-8")
    changed = sorted(set(found.splitlines()) ^ set(wanted.splitlines()))
    assert found == wanted, f"parameters differ from {path.name} in: {changed}"


def check_learning(ref: str) -> None:
    """Losses are finite and fall, on the batches seen and, where measured, on the test split."""
    for name, stage in stages(ref).items():
        losses, later = stage.straight.losses, stage.later
        assert all(map(math.isfinite, losses)), f"{name}: the losses are not finite: {losses}"
        before, after = np.mean(losses[:COMPARED]), np.mean(later)
        assert after < before, f"{name}: the loss rises from {before:.6g} to {after:.6g}"
        first, last = stage.tested
        assert all(map(math.isfinite, last.values())), f"{name}: test metrics {last}"
        if "loss" in last:
            rise = f"{name}: the test loss rises from {first['loss']:.6g} to {last['loss']:.6g}"
            assert last["loss"] < first["loss"], rise


def check_gradients(ref: str) -> None:
    """A gradient reaches every parameter that FROZEN does not name."""
    found = {path for stage in stages(ref).values() for path in unreached(stage.straight)}
    declared = {pattern: {p for p in found if re.search(pattern, p)} for pattern in _frozen(ref)}
    stray = sorted(found.difference(*declared.values()))
    assert not stray, f"no gradient reaches {stray}; those meant to stay are named in FROZEN"
    for pattern, paths in declared.items():
        assert paths, f"FROZEN names {pattern!r}, but a gradient reaches all parameters"


def check_one_program(ref: str) -> None:
    """The state that a step returns is of the types that it takes: the next step is no other
    program.
    """
    for name, (took, gave) in observed(ref).types.items():
        changed = [
            f"{path}: {took.get(path, 'nothing')} taken, {gave.get(path, 'nothing')} returned"
            for path in took.keys() | gave.keys()
            if took.get(path) != gave.get(path)
        ]
        assert not changed, f"{name}: the second step would be compiled anew; {'; '.join(changed)}"


def check_same_bits(ref: str) -> None:
    """The same seed gives the same bits, also by files that are loaded anew."""
    for name, stage in stages(ref).items():
        for what in ("start", "end"):
            one, other = getattr(stage.straight, what), getattr(stage.again, what)
            paths = differing(one, other)
            assert not paths, f"{name}: with one seed, the {what} differs in {paths[:5]}"
        assert stage.straight.losses == stage.again.losses, name


def check_resuming(ref: str) -> None:
    """A run that was stopped and taken up by a new one ends in the bits of one that was not."""
    for name, stage in stages(ref).items():
        paths = differing(stage.straight.end, stage.resumed.end)
        assert not paths, (
            f"{name}: stopped after step {STOP} and resumed, it differs in {paths[:5]}"
        )
        assert stage.straight.losses == stage.resumed.losses, f"{name}: losses differ"


def check_devices(ref: str) -> None:
    """One batch on two devices gives the losses, the parameters and the optimizer's moments that it
    gives on one.
    """
    found, second = stages(ref), observed(ref).second
    failure, frozen = second.failure("devices"), _frozen(ref)
    assert not failure, failure
    with np.load(second.folder / "devices.npz") as two:
        for name, stage in found.items():
            for path, one in _compared(name, stage.sharded).items():
                # What moves by rounding alone moves differently.
                if any(re.search(pattern, path) for pattern in frozen):
                    continue
                error = np.abs(one - two[path]).max() / max(np.abs(one).max(), 1e-30)
                assert error <= CLOSE, f"on two devices {path} differs by {error:.2g} of its scale"


def check_sampling(ref: str) -> None:
    """Images drawn are in [0, 1], and depend on the key alone."""
    assert stages(ref)
    run = observed(ref).run
    data = run.config.data
    labels = np.repeat(np.arange(data.num_classes), 2)
    for name, method in run.methods.items():
        if method.sample is None:
            continue

        def drawn(seed: int, name: str = name, sample: Any = method.sample) -> np.ndarray:
            variables, given = run.variables(name), run.given(name)
            key = jax.random.key(seed)
            return sample_in_batches(sample, variables, key, labels, given, len(labels))

        with loop.scope(run.mesh):
            first, same, other = drawn(0), drawn(0), drawn(1)
        shape = (len(labels), data.size, data.size, data.channels)
        assert first.shape == shape, f"{name}: images {first.shape}, expected {shape}"
        low, high = first.min(), first.max()
        assert 0 <= low < high <= 1, f"{name}: pixels from {low} to {high}, not in [0, 1]"
        assert first.tobytes() == same.tobytes(), f"{name}: one key draws different images"
        assert first.tobytes() != other.tobytes(), f"{name}: another key draws the same images"


def check_study(ref: str) -> None:
    """The study states claims, each with its numbers, and records what is finite."""
    assert stages(ref)
    second = observed(ref).second
    failure = second.failure("study")
    assert not failure, failure
    written = files.read_json(second.folder / "results" / f"{card(ref).slug}.json")
    assert written["claims"], "the study states no claim"
    for claim in written["claims"]:
        assert claim["text"] and isinstance(claim["holds"], bool), claim
        numbers = {name: claim[name] for name in ("value", "spread", "against")}
        bad = [name for name, number in numbers.items() if not _finite(number)]
        assert not bad, f"the claim {claim['text']!r} has no finite {bad}: {numbers}"
    assert written["records"], "the study records nothing"
    for record in written["records"]:
        assert _finite(record["value"]), f"a record is not finite: {record}"


CHECKS: dict[str, Callable[[str], None]] = {
    "docstring": check_docstring,
    "files": check_files,
    "variants": check_variants,
    "shapes": check_shapes,
    "learning": check_learning,
    "gradients": check_gradients,
    "one_program": check_one_program,
    "same_bits": check_same_bits,
    "resuming": check_resuming,
    "sampling": check_sampling,
    # Last: by then the second process is done, or nearly.
    "devices": check_devices,
    "study": check_study,
}


def start_second(refs: Sequence[str]) -> None:
    """Starts one second process for several experiments; `observed` starts one for its own."""
    folder = Path(_temporary())
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(folder / "log", "wb") as log:
        words = [sys.executable, __file__, str(folder), *refs]
        process = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
    for place, ref in enumerate(refs):
        _seconds[ref] = Second(process, folder / str(place))


@functools.cache
def observed(ref: str) -> Observed:
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
    found = observed(ref)
    for name in found.run.methods:
        if name not in found.stages:
            raise NotTrained(f"stage {name!r} cannot take a second step, see check_one_program")
    return found.stages


class Trainer:
    """One stage of one run: its first state, its batches, and its step, traced."""

    def __init__(self, run: Run, name: str, given: Any) -> None:
        self.run, self.plan, self.given = run, plan_of(run, name)[0], given
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
            state = self.plan.create()
            self.start = jax.device_get(state)
            self.traced = loop.trace_step(self.plan, state, self.batches[0], self.root, given)
            self.lowered = self.traced.lower()

    def types(self) -> tuple[Types, Types]:
        """Returns the types of the state that a step takes, and of the one that it returns."""
        taken = jax.tree.unflatten(self.traced.in_tree, jax.tree.leaves(self.traced.in_avals))
        return _types(taken[0][0]), _types(self.traced.out_info[0])

    def compiled(self, other: Trainer | None = None) -> loop.Program:
        """Returns the step's program; that of another trainer where it is the same."""
        text = self.lowered.as_text()
        # A call back to Python reads alike whatever function it calls.
        if other is not None and "callback" not in text and other.lowered.as_text() == text:
            return other.program
        return loop.Program(self.lowered.compile(), 0)

    @functools.cached_property
    def program(self) -> loop.Program:
        """The step's program."""
        return self.compiled()

    def course(
        self, program: loop.Program, steps: int, start: TrainState, given: Any = None
    ) -> Course:
        """Returns what `steps` steps make of a state, taken without `fit`."""
        state, losses = jax.device_put(start, self.where), []
        given = self.given if given is None else given
        for batch in self.batches[:steps]:
            state, metrics = program.step(state, batch, self.root, given)
            losses.append(float(metrics["loss"]))
        return Course(start, jax.device_get(state), losses)

    def sharded(self, start: TrainState, given: Any) -> Course:
        """Returns the state after SHARDED steps from a shaken start, and one loss more: of it."""
        begin = shaken(start, self.plan.total - SHARDED - 1)
        longer = self.course(self.program, SHARDED + 1, begin, given)
        return self.course(self.program, SHARDED, begin, given)._replace(losses=longer.losses)

    def later(self, end: TrainState) -> list[float]:
        """Returns the losses that the first batches have after training, with the same keys."""
        losses = []
        for number, batch in enumerate(self.batches[:COMPARED]):
            state = jax.device_put(end._replace(step=np.int32(number)), self.where)
            # The step that this takes is thrown away.
            _, metrics = self.program.step(state, batch, self.root, self.given)
            losses.append(float(metrics["loss"]))
        return losses

    def fitted(self, program: loop.Program, start: TrainState, total: int) -> TrainState:
        """Returns the state after `fit` up to step `total`, from the checkpoint where one is."""
        run = self.run
        # Measuring is compiled and timed elsewhere, and leaves no trace in the state.
        method = self.plan.method._replace(evaluate=lambda *batch: {})
        plan = self.plan._replace(
            create=lambda: jax.device_put(start, self.where),
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
            return jax.device_get(loop.fit(plan, *given, program=program))

    def tested(self, state: TrainState, evaluate: loop.Evaluator) -> dict[str, float]:
        """Returns the test metrics of the parameters themselves: an average lags behind."""
        variables = eval_variables(state._replace(ema=None), self.plan.optimizer)
        placed = jax.device_put(variables, self.where.variables)
        return evaluate(placed, self.run.sources["test"])


def _stage(made: Trainer, again: Run, starts: dict[str, TrainState]) -> Stage:
    """Trains one stage in all the ways that are compared; what is compiled is shared.

    starts  states of the stages before it, untrained
    """
    name, total, start, program = made.plan.name, made.plan.total, made.start, made.program
    straight = made.course(program, total, start)
    later = made.later(straight.end)
    evaluate = loop.Evaluator(made.plan, made.run.mesh, made.given)
    tested = made.tested(start, evaluate), made.tested(straight.end, evaluate)
    made.fitted(program, start, STOP)
    # Resumed before it starts anew: what Python alone remembers must be lost.
    other = Trainer(again, name, again.given(name))
    same = other.compiled(made)
    end = other.fitted(same, start, total)
    rows = Path(again.workdir, "metrics.jsonl").read_text("utf-8").splitlines()
    logged = [
        row["loss"] for row in map(json.loads, rows) if row["stage"] == name and "loss" in row
    ]
    repeated = other.course(same, total, other.start)
    with untrained(made.run, starts) as given:
        needed = made.plan.method.needs
        first = jax.device_get(made.plan.create()) if needed else start
        few = made.sharded(first, {need: given[need] for need in needed})
    return Stage(straight, repeated, Course(start, end, logged), few, later, tested)


@contextlib.contextmanager
def untrained(run: Run, starts: dict[str, TrainState]) -> Iterator[dict[str, Any]]:
    """Lets a run take stages for finished that are not; yields their variables."""
    kept = dict(run._variables)
    for name, state in starts.items():
        variables = eval_variables(state, plan_of(run, name)[0].optimizer)
        where = plan_of(run, name)[0].abstract.variables
        run._variables[name] = jax.device_put(
            variables, jax.tree.map(lambda leaf: leaf.sharding, where)
        )
    try:
        yield dict(run._variables)
    finally:
        run._variables.clear()
        run._variables.update(kept)


def plan_of(run: Run, name: str) -> tuple[loop.Plan, Any]:
    """Returns the plan of a stage, and the shapes of its variables with linen's boxes kept."""
    return run._plans[name]


def described(run: Run) -> str:
    """Returns a line per variable of every stage: path, type, and its axes' names."""
    lines = []
    for name in run.methods:
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            plan_of(run, name)[1], is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
        )
        for path, box in leaves:
            leaf, axes = nn.meta.unbox(box), getattr(box, "names", None)
            shape = ",".join(map(str, leaf.shape))
            named = "" if axes is None else f" ({', '.join(str(axis or '-') for axis in axes)})"
            lines.append(f"{name} {sharding.path_name(path)} {leaf.dtype}[{shape}]{named}")
    return "\n".join(lines) + "\n"


def unreached(course: Course) -> list[str]:
    """Returns the paths of the parameters that have not moved, or whose moments are all zero.

    Zero is what is rounding beside the largest of its kind. Weight decay alone moves a parameter
    too; an optimizer that keeps no moments leaves only that to look at.
    """
    after = _named(course.end.variables["params"])
    before, opt_state = _named(course.start.variables["params"]), _named(course.end.opt_state)
    moments: dict[str, dict[str, float]] = {}
    for path in before:
        for place, leaf in opt_state.items():
            if f"/{place}".endswith(f"/{path}") and leaf.shape == before[path].shape:
                kind = place.removesuffix(path)
                moments.setdefault(kind, {})[path] = float(np.abs(leaf).max())
    shares: dict[str, list[float]] = {path: [] for path in before}
    for sizes in moments.values():
        for path, size in sizes.items():
            shares[path].append(size / (max(sizes.values()) or 1))
    return [
        path
        for path, mine in shares.items()
        if np.all(after[path] == before[path]) or (mine and max(mine) <= ROUNDING)
    ]


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


def differing(one: TrainState, other: TrainState) -> list[str]:
    """Returns the paths of the leaves whose bits differ."""
    mine, theirs = _named(one), _named(other)
    assert mine.keys() == theirs.keys()
    return [path for path, leaf in mine.items() if leaf.tobytes() != theirs[path].tobytes()]


def code_lines(path: str) -> int:
    """Returns the number of lines that hold code: no docstring, comment or blank line."""
    text = Path(path).read_text("utf-8")
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*silent, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _types(tree: Any) -> Types:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        sharding.path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    }


def _compared(name: str, course: Course) -> dict[str, np.ndarray]:
    """Returns what must agree on one device and on two, by path."""
    found = {"losses": np.array(course.losses), **_named(course.end._replace(ema=None))}
    numbers = {path: leaf for path, leaf in found.items() if leaf.dtype.kind in "fiub"}
    return {f"{name}/{path}": leaf.astype(np.float64) for path, leaf in numbers.items()}


def _frozen(ref: str) -> tuple[str, ...]:
    return FROZEN.get(card(ref).slug, ())


def _finite(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _temporary() -> str:
    _folders.append(tempfile.TemporaryDirectory(prefix="bigr-contract-"))
    return _folders[-1].name


def see_devices(ref: str, folder: Path) -> None:
    """Leaves in devices.npz what the first steps give on the devices of this process."""
    run = Run(configs.load(f"{ref}:smoke"), str(folder / "devices"))
    starts: dict[str, TrainState] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, method in run.methods.items():
        with untrained(run, starts) as given:
            made = Trainer(run, name, {need: given[need] for need in method.needs})
        starts[name] = made.start
        arrays |= _compared(name, made.sharded(made.start, made.given))
    np.savez(folder / "devices.npz", allow_pickle=False, **arrays)


def see_study(ref: str, folder: Path) -> None:
    """Leaves in results/ what the study shows."""
    config = configs.load(f"{ref}:smoke")
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
