"""Which batch and remat policy would fit best, and what to do where memory has run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax.nn.stack import REMAT
from bigr_jax.ops import chips, flops
from bigr_jax.train import memory, planning
from bigr_jax.train.loop import scope, trace_step
from bigr_jax.train.planning import Figures
from bigr_jax.train.run import Run

FACTORS = (0.25, 0.5, 1, 2, 4, 8)


class Choice(NamedTuple):
    """Settings of a stage, and what they would take.

    total     bytes on one device
    fits      whether that leaves a little room; None where the memory of a device is not known
    bound     the least time of a step
    measured  whether it was compiled, not predicted from others
    """

    settings: Mapping[str, str]
    batch_size: int
    total: float
    fits: bool | None
    bound: chips.Bound | None
    measured: bool


def policies(config: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Returns {key: its legal values} of the settings that say what a backward pass repeats."""
    found: dict[str, tuple[str, ...]] = {}
    for key, value in configs.flat(config).items():
        if key.rpartition(".")[2] == "remat":
            found[key] = ("false", "true") if isinstance(value, bool) else tuple(REMAT)
    return found


def useful_operations(make: Callable[[Mapping[str, str]], Run], config: Any, name: str) -> int:
    """Returns the FLOPs of a step of a stage, without what remat repeats.

    make  (overrides) -> the run with these settings
    """
    nothing = {key: values[0] for key, values in policies(config).items()}
    return operations(make(nothing), name)


def operations(run: Run, name: str) -> int:
    """Returns the FLOPs of a step of a stage over all devices, without compiling it."""
    plan = run.plan(name)
    with scope(run.mesh):
        traced = trace_step(
            plan,
            plan.abstract,
            planning.batch_shapes(run, name),
            planning.key_shape(run.mesh),
            planning.given_shapes(run, name),
        )
    return flops.count(traced.jaxpr)


def search(
    make: Callable[[Mapping[str, str]], Run], config: Any, name: str, known: Figures | None
) -> list[Choice]:
    """Returns the choices of remat policy and batch size, the best first.

    known  the figures of the config's own policy and batch size, None where those do not fit

    Two batch sizes are compiled for each policy; all figures are close to linear in the batch,
    unless the memory runs short, see `_total`.
    Those that fit come first, the largest bound on MFU first among them, then the
    largest batch.
    """
    key = f"train.{name}.batch_size"
    size = config.train[name].batch_size
    own = {setting: str(value) for setting, value in configs.flat(config).items()}
    tried: list[dict[str, str]] = []
    for setting, values in policies(config).items():
        least, most = (operations(make({setting: values[at]}), name) for at in (0, -1))
        # A policy of a part through which this stage sends no gradient repeats nothing.
        if least != most:
            tried += [{setting: value} for value in values]
    useful = known.useful if known else useful_operations(make, config, name)
    choices: list[Choice] = []
    for remat in tried or [{}]:
        run = make(remat)
        unit = run.mesh.shape["data"] * run.mesh.shape["fsdp"] * config.train[name].accumulate
        same = all(own[setting].lower() == value for setting, value in remat.items())
        figures = {size: known} if known and same else {}
        choices += _along_batches(run, name, remat, key, size, unit, useful / size, figures)
    return sorted(choices, key=_rank)


def _rank(choice: Choice) -> tuple[bool, float, int, float]:
    bound = choice.bound.mfu if choice.bound else 0.0
    return choice.fits is False, -round(bound, 2), -choice.batch_size, choice.total


def _along_batches(
    run: Run,
    name: str,
    remat: Mapping[str, str],
    key: str,
    size: int,
    unit: int,
    useful: float,
    known: Mapping[int, Figures],
) -> list[Choice]:
    pair: list[tuple[int, Figures]] = []
    batch, refused = size, None
    while len(pair) < 2 and batch >= unit:
        if batch % unit == 0:
            try:
                found = known[batch] if batch in known else planning.plan_step(run, name, batch)
                pair.append((batch, found))
            except memory.OutOfMemory:
                refused = batch
        batch //= 2
    if not pair:
        return []
    device, measured = run.mesh.devices.flat[0], {batch: found for batch, found in pair}
    limit, choices = memory.memory_limit(device), []
    for batch in sorted({int(size * factor) // unit * unit for factor in FACTORS} - {0}):
        done, traffic = (_along(pair, batch, field) for field in ("operations", "traffic"))
        total = _total(pair, batch)
        each = run.mesh.size
        bound = chips.bound(
            device, done / each, useful * batch / each, traffic, _along(pair, batch, "moved")
        )
        fits = (
            None if limit is None else total <= limit * (1 if batch in measured else memory.MARGIN)
        )
        # No line through smaller ones says more than the compiler.
        if refused is not None and batch >= refused:
            fits = False
        settings = {**remat, key: str(batch)}
        choices.append(Choice(settings, batch, total, fits, bound, batch in measured))
    return choices


def _total(pair: Sequence[tuple[int, Figures]], batch: int) -> float:
    """Returns the bytes at a batch size.

    Where the larger of two takes no more than the smaller, the compiler, short of memory, has
    chosen otherwise for it, and a line would say that still larger ones take less. Then all but the
    weights and what belongs to them grows with the batch.
    """
    sizes = [found.total for _, found in sorted(pair)]
    if len(pair) < 2 or batch in dict(pair) or sizes[0] < sizes[1]:
        return _along(pair, batch, "total")
    near, found = min(pair, key=lambda one: abs(one[0] - batch))
    kept = sum(found.memory.get(name, 0) for name in memory.WEIGHTS)
    return kept + (found.total - kept) * batch / near


def _along(pair: Sequence[tuple[int, Figures]], batch: int, field: str) -> float:
    """Returns a figure at a batch size, on the line through those of two others."""
    (first, a), *rest = ((size, float(getattr(found, field))) for size, found in pair)
    if not rest:
        return a * batch / first
    second, b = rest[0]
    return max(a + (b - a) * (batch - first) / (second - first), 0.0)
