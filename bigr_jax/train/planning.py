"""What a stage will take of a machine that need not be there: its programs compiled, and read."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigr_jax.generate.batched import drawing, rounded
from bigr_jax.ops import chips, flops, hlo, hlo_memory
from bigr_jax.ops.collectives import Collective, collectives
from bigr_jax.ops.hlo_memory import Kept
from bigr_jax.train import sharding
from bigr_jax.train.commands import DRAWN_AT_ONCE
from bigr_jax.train.loop import Plan, scope, trace_step
from bigr_jax.train.memory import (
    OutOfMemory,
    by_class,
    explained,
    held_bytes,
    memory_limit,
    ran_out,
    shard_bytes,
    step_of,
)
from bigr_jax.train.run import Run

# The largest arrays that a plan names.
NAMED = 12
# What `bigr sample` draws of a class where nothing else is asked for.
PER_CLASS = 8


class Figures(NamedTuple):
    """What one program takes of one device of a mesh, or does on all.

    memory       bytes on one device by class, in the order in which they are told
    limit        bytes that a program may have there, None where that is not known
    operations   FLOPs of one run over all devices, what remat repeats among them
    useful       those without what remat repeats
    traffic      bytes that one device reads from and writes to its memory
    collectives  of one device
    minimum      bytes that one device has to send at least, see `least_moved`
    arrays       the largest that the program makes
    bound        the least time of it, None for a device that is not in the table
    seconds      that tracing and compiling took
    """

    memory: Mapping[str, int]
    limit: float | None
    operations: int
    useful: int
    traffic: int
    collectives: Sequence[Collective]
    minimum: float
    arrays: Sequence[Kept]
    bound: chips.Bound | None
    seconds: float

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether a device holds that; None where its memory is not known."""
        return None if self.limit is None else self.total <= self.limit

    @property
    def moved(self) -> float:
        """Bytes that one device sends, see `Collective.moved`."""
        return sum(item.moved for item in self.collectives)


def plan_step(run: Run, name: str, batch_size: int | None = None) -> Figures:
    """Returns the figures of a stage's train step, compiled for the mesh of a run.

    batch_size  in place of the config's
    Nothing is allocated. Raises `memory.OutOfMemory` where the compiler finds no room.
    """
    plan, begin = run.plan(name), time.perf_counter()
    given = given_shapes(run, name)
    batch = batch_shapes(run, name, batch_size)
    step = step_of(plan, batch, given, run.mesh)
    with scope(run.mesh), explained(step):
        traced = trace_step(plan, plan.abstract, batch, key_shape(run.mesh), given)
        compiled = _compiled(traced)
    operations = flops.count(traced.jaxpr)
    # What most products take is what parameters are gathered as, and gradients come in.
    narrow = 2 * flops.count(traced.jaxpr, jnp.bfloat16) > operations
    least = least_moved(plan, _read(traced, given), run.mesh, 2 if narrow else 4)
    return _figures(
        compiled, held_bytes(step), run.mesh, operations, least, time.perf_counter() - begin
    )


def plan_sampler(run: Run, name: str, size: int) -> Figures:
    """Returns the figures of a stage's sampler as `bigr sample` compiles it, for `size` images.

    Raises `memory.OutOfMemory` where the compiler finds no room.
    """
    method, begin = run.methods[name], time.perf_counter()
    assert method.sample is not None
    given, variables = given_shapes(run, name), run.plan(name).abstract.variables
    sample, labels = method.sample, jax.ShapeDtypeStruct((size,), np.int32)
    if getattr(getattr(method.model, "net", None), "text", ()):
        spec = run.batch_spec(name)
        row = {column: np.zeros((1, *leaf.shape[1:]), leaf.dtype) for column, leaf in spec.items()}
        sample = method.model.describing(method.model.condition(row))
    with scope(run.mesh):
        traced = drawing(sample).trace(variables, key_shape(run.mesh), labels, given)
        try:
            compiled = _compiled(traced)
        except jax.errors.JaxRuntimeError as error:
            if not ran_out(error):
                raise
            what = f"the sampler of stage {name!r}, {size} images, is out of memory"
            raise OutOfMemory(f"{what}: {str(error).splitlines()[0]}") from error
    held = {"parameters": shard_bytes(variables), "given stages": shard_bytes(given)}
    operations = flops.count(traced.jaxpr)
    return _figures(compiled, held, run.mesh, operations, 0.0, time.perf_counter() - begin)


def drawn_at_once(run: Run) -> int:
    """Returns how many images `bigr sample` draws in one run of its program."""
    return rounded(min(DRAWN_AT_ONCE, PER_CLASS * run.config.data.num_classes), run.mesh)


def with_useful(found: Figures, useful: int) -> Figures:
    """Returns figures of which only so many FLOPs are not repetitions."""
    share = useful / max(found.operations, 1)
    bound = found.bound and found.bound._replace(useful=found.bound.useful * share)
    return found._replace(useful=useful, bound=bound)


def given_shapes(run: Run, name: str) -> dict[str, Any]:
    """Returns the shapes and placements of the stages that one builds on."""
    return {need: run.plan(need).abstract.variables for need in run.methods[name].needs}


def batch_shapes(run: Run, name: str, batch_size: int | None = None) -> dict[str, Any]:
    """Returns the shapes and placements of a training batch."""
    where = sharding.batch_sharding(run.mesh)
    return {
        column: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=where)
        for column, spec in run.batch_spec(name, batch_size).items()
    }


def key_shape(mesh: Mesh) -> Any:
    """Returns the shape and placement of a random key."""
    kind = jax.eval_shape(lambda: jax.random.key(0)).dtype
    return jax.ShapeDtypeStruct((), kind, sharding=sharding.replicated(mesh))


def least_moved(plan: Plan, given: Any, mesh: Mesh, width: int = 4) -> float:
    """Returns the bytes that one device has to send in a step for its parameters' sake alone.

    A parameter of S bytes in n parts along the fsdp axis is gathered for the forward pass and again
    for the backward pass, and its gradient is scattered: 3 (n - 1) / n S. Over the d devices of the
    data axis its gradient is summed: 2 (d - 1) / d S / n. What is given and read is gathered once.
    S counts what a device of the model axis has to do with, at `width` bytes a number at most.
    """
    n, d = mesh.shape["fsdp"], mesh.shape["data"]
    total = 0.0
    for tree, gathers, gradients in ((plan.abstract.variables["params"], 2, 1), (given, 1, 0)):
        for leaf in jax.tree.leaves(tree):
            axes = [axis for axis in leaf.sharding.spec if axis is not None]
            parted = any("fsdp" in (a if isinstance(a, tuple) else (a,)) for a in axes)
            part = math.prod(leaf.sharding.shard_shape(leaf.shape))
            part *= min(leaf.dtype.itemsize, width)
            if parted:
                total += (gathers + gradients) * (n - 1) * part
            over = d if parted else d * n
            total += gradients * 2 * (over - 1) / over * part
    return total


def _read(traced: jax.stages.Traced, given: Any) -> list[Any]:
    """Returns the leaves of `given`, the last argument, that a program reads."""
    leaves, jaxpr = jax.tree.leaves(given), traced.jaxpr.jaxpr
    taken = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    last = jaxpr.invars[len(jaxpr.invars) - len(leaves) :]
    return [leaf for leaf, variable in zip(leaves, last, strict=True) if id(variable) in taken]


def _compiled(traced: jax.stages.Traced) -> jax.stages.Compiled:
    with warnings.catch_warnings():
        # A program for devices that are not here cannot be read back from there.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        return traced.lower().compile()


def _figures(
    compiled: Any, held: Mapping[str, int], mesh: Mesh, operations: int, least: float, spent: float
) -> Figures:
    program = hlo.parse(compiled.as_text() or "")
    memory = by_class(held, program, compiled.memory_analysis())
    device, found = mesh.devices.flat[0], collectives(program)
    traffic, moved = hlo_memory.traffic(program), sum(item.moved for item in found)
    each = operations / mesh.size
    return Figures(
        memory=memory,
        limit=memory_limit(device),
        operations=operations,
        useful=operations,
        traffic=traffic,
        collectives=found,
        minimum=least,
        arrays=hlo_memory.largest(program, NAMED),
        bound=chips.bound(device, each, each, traffic, moved),
        seconds=spent,
    )
