"""Where the first number that is not finite came from, in words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn

from bigr_jax.api import Array, Batch, Given, TrainState
from bigr_jax.train.step import Step
from bigr_jax.train.taps import FLOW, Found, not_finite, tap

_SHOWN = 3


def first_not_finite(
    step: Step,
    state: TrainState,
    batch: Batch,
    root: Array,
    given: Given,
    metrics: Mapping[str, float],
    where: Any = None,
) -> str:
    """Returns what the first number of a step was that is not finite, after running it again.

    It is looked for in what the step is given, in what enters and leaves every linen module, in
    the loss, the gradient, the learning rate, and the variables that the step makes.

    metrics  what the step measured
    where    sharding of small results, on every device
    """
    for name, tree in (("the batch", batch), ("the state", state), ("the given stages", given)):
        if bad := leaves_not_finite(tree, where):
            return f"{bad} of {name}"
    try:
        with _watched_modules():
            found = not_finite(step, state, batch, root, given, where=where)
    except Exception as error:
        # It reads what jax makes of a program, which a version to come may write otherwise; what
        # is known must be said all the same.
        return f"unknown, since looking for it failed: {type(error).__name__}: {error}"
    for entry in found:
        if entry.kind in FLOW:
            return _layer(entry)
    if not math.isfinite(metrics.get("loss", 0.0)):
        return "the loss itself: what every layer returns is finite"
    for kind, text in (("gradient", "the gradient of {}: the loss is finite"), ("variables", "{}")):
        paths = list(dict.fromkeys(entry.path for entry in found if entry.kind == kind))
        if kind == "variables" and not math.isfinite(metrics.get("lr", 0.0)):
            return "the learning rate"
        if paths:
            after = "" if kind == "gradient" else " after the step: loss and gradient are finite"
            return text.format(_listed(paths)) + after
    return "not seen again when the step was run a second time"


def leaves_not_finite(tree: Any, where: Any = None) -> str:
    """Returns the paths of the arrays of a tree that are not finite, the first few of them."""

    def named(tree: Any) -> Any:
        return tap(tree, "leaf")

    return _listed([found.path for found in not_finite(named, tree, where=where)])


def _layer(entry: Found) -> str:
    path, _, module = entry.path.rpartition(" ")
    layer = f"{path or 'the network'} {module}"
    scans = ", ".join(map(str, entry.at))
    turn = f" at iteration {scans} of its scan" if len(entry.at) == 1 else ""
    turn = turn or (f" at iterations {scans} of its scans" if scans else "")
    return f"what {'enters' if entry.kind == 'input' else 'leaves'} {layer}{turn}"


@contextlib.contextmanager
def _watched_modules() -> Iterator[None]:
    """Names what enters and what leaves every module that is called within."""

    def watch(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name == "setup":
            return call(*args, **kwargs)
        method = "" if context.method_name == "__call__" else f".{context.method_name}"
        path = "/".join(context.module.path)
        path = f"{path} ({type(context.module).__name__}{method})"
        args, kwargs = tap((args, kwargs), "input", path)
        return tap(call(*args, **kwargs), "output", path)

    with nn.intercept_methods(watch):
        yield


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
