"""The memory of a device: what a stage holds there, what its step adds, and what to do for want of
it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bigr_jax.api import TrainState
from bigr_jax.errors import UserError
from bigr_jax.ops import chips, hlo, hlo_memory
from bigr_jax.train.overview import in_bytes
from bigr_jax.train.patterns import paths

# How many arrays a message names.
NAMED = 3
# Of the memory that is there; a proportion is not a measurement.
MARGIN = 0.95
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)"
WEIGHTS = ("parameters", "optimizer", "average")


class OutOfMemory(UserError):
    """A program that a device has no room for; the text says what is large and what would fit."""


class Step(NamedTuple):
    """A stage's train step, as far as its memory goes.

    state, batch, given  shapes with placements, or arrays
    whole_batch          whether it sees its batch at once, so that it cannot be accumulated
    """

    name: str
    batch_size: int
    state: TrainState
    batch: Any
    given: Any
    mesh: Mesh
    whole_batch: bool = False


def step_of(plan: Any, batch: Any, given: Any, mesh: Mesh) -> Step:
    """Returns the train step of a `loop.Plan`, for a batch of any size."""
    own = plan.method.step is not None
    # Some columns may have fewer rows, see `data.division`.
    size = max(leaf.shape[0] for leaf in jax.tree.leaves(batch))
    return Step(plan.name, size, plan.abstract, batch, given, mesh, own)


def shard_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of arrays, or of shapes with placements."""
    return sum(_held(leaf) for leaf in jax.tree.leaves(tree))


def held_bytes(step: Step) -> dict[str, int]:
    """Returns the bytes on one device, by class, of what a train step is given."""
    return {
        "parameters": shard_bytes(step.state.variables),
        "optimizer": shard_bytes(step.state.opt_state),
        "average": shard_bytes(step.state.ema),
        "given stages": shard_bytes(step.given),
        "batch": shard_bytes(step.batch),
    }


def by_class(held: Mapping[str, int], program: hlo.Program, stats: Any) -> dict[str, int]:
    """Returns the bytes on one device, by class, of a program at work.

    held   what it is given
    stats  of `compiled.memory_analysis()`
    """
    kept = sum(item.size for item in hlo_memory.kept(program))
    activations = min(kept, stats.temp_size_in_bytes)
    classes = {
        **held,
        # Rows and columns are rounded up to a device's tiles; what is not read is not passed in.
        "padding": max(stats.argument_size_in_bytes - sum(held.values()), 0),
        "activations": activations,
        "temporaries": stats.temp_size_in_bytes - activations,
        "results": max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0),
        "code": stats.generated_code_size_in_bytes,
    }
    return {name: size for name, size in classes.items() if size}


def memory_limit(device: jax.Device) -> float | None:
    """Returns the bytes that programs may have on a device, None where that is not known."""
    try:
        stats = device.memory_stats() or {}
    # A device that is only compiled for has none to tell.
    except Exception:
        stats = {}
    chip = chips.chip_of(device)
    return stats.get("bytes_limit") or (chip.memory if chip else None)


@contextlib.contextmanager
def explained(step: Step, compiled: jax.stages.Compiled | None = None) -> Iterator[None]:
    """Turns a want of memory, in compiling or running a train step, into OutOfMemory, which says
    what is large and what would fit.

    compiled  the program, where it is what runs
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(explain_out_of_memory(step, str(error), compiled)) from error


def ran_out(error: Exception) -> bool:
    """Whether an error is a want of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def explain_out_of_memory(
    step: Step, error: str, compiled: jax.stages.Compiled | None = None
) -> str:
    """Returns a few lines: what a step needs by class, its largest arrays, and what would fit.

    error  what XLA said. Nothing is allocated. The batch that would fit is by proportion: of all
           but the parameters and what goes with them.
    """
    device = step.mesh.devices.flat[0]
    needed, limit = _needed(step, error, compiled)
    limit = limit or memory_limit(device)
    total = sum(needed.values())
    of = f" of the {in_bytes(limit)} that a {device.device_kind} has" if limit else ""
    classes = sorted(needed.items(), key=lambda pair: -pair[1])
    lines = [
        f"stage {step.name!r} with batch_size={step.batch_size} is out of memory: it takes "
        f"{in_bytes(total)}{of}",
        "  " + ", ".join(f"{name} {in_bytes(size)}" for name, size in classes if size),
        "  the largest arrays: " + "; ".join(_largest(step, error, compiled)),
        *(f"  {line}" for line in _remedies(step, needed, limit)),
    ]
    return "\n".join(lines)


def _held(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _needed(
    step: Step, error: str, compiled: jax.stages.Compiled | None
) -> tuple[dict[str, int], float | None]:
    """Returns the bytes on one device by class, and its limit where the error tells it."""
    held = held_bytes(step)
    if compiled is not None:
        return by_class(held, hlo.parse(compiled.as_text() or ""), compiled.memory_analysis()), None
    name, known = "activations and temporaries", sum(held.values())
    if found := re.search(rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)", error):
        return {**held, name: _number(found[1], found[2])}, _number(found[3], found[4])
    if found := re.search(rf"Used {_SIZE} of {_SIZE} hbm", error):
        rest = max(_number(found[1], found[2]) - known, 0)
        return {**held, name: rest}, _number(found[3], found[4])
    found = re.search(r"allocat\w* (\d+) bytes", error)
    return ({**held, name: int(found[1])} if found else held), None


def _number(text: str, unit: str) -> int:
    return int(float(text) * _UNITS[unit])


def _largest(step: Step, error: str, compiled: jax.stages.Compiled | None) -> list[str]:
    if compiled is not None:
        arrays = hlo_memory.largest(hlo.parse(compiled.as_text() or ""), NAMED)
        return [f"{in_bytes(a.size)} {a.shape.partition('{')[0]} {a.where}" for a in arrays]
    listed = []
    for text in re.split(r"\d+\. Size: ", error)[1:]:
        shape, name = re.search(r"Shape: (\S+?\])", text), re.search(r'op_name="([^"]*)"', text)
        words = (text.split()[0], shape and shape[1], name and name[1])
        listed.append(" ".join(word for word in words if word))
    if listed:
        return listed[:NAMED]
    tree = {"state": step.state, "given": step.given, "batch": step.batch}
    named = zip(paths(tree), jax.tree.leaves(tree), strict=True)
    largest = sorted(named, key=lambda pair: -_held(pair[1]))[:NAMED]
    return [f"{in_bytes(_held(leaf))} {path}" for path, leaf in largest]


def _remedies(step: Step, needed: Mapping[str, int], limit: float | None) -> Iterator[str]:
    fixed = sum(needed.get(name, 0) for name in (*WEIGHTS, "given stages"))
    moving = sum(needed.values()) - fixed
    key, rows = f"train.{step.name}", step.mesh.shape["data"] * step.mesh.shape["fsdp"]
    size = step.batch_size // 2 if limit is None else step.batch_size
    if limit is not None and moving:
        size = min(int((MARGIN * limit - fixed) / moving * step.batch_size), step.batch_size // 2)
    size = size // rows * rows
    if size > 0:
        text = f"by proportion, --config.{key}.batch_size={size} fits"
        if not step.whole_batch:
            text += f", or the same batch with --config.{key}.accumulate="
            text += str(2 ** math.ceil(math.log2(step.batch_size / size)))
        yield text
    yield "a remat setting of the model that repeats more (none < dots < full) keeps less"
    weights, count = sum(needed.get(name, 0) for name in WEIGHTS), step.mesh.shape["fsdp"]
    if count < step.mesh.size:
        yield (
            f"--config.mesh.fsdp={2 * count} halves the {in_bytes(weights)} of parameters, "
            "optimizer and average; `bigr plan --search` compares"
        )
