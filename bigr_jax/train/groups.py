"""An optimizer for each of several groups of parameters, which take their turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax


def by_group(groups: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Returns the optimizer of parameters {group: tree}, each by its own.

    Gradients may be of some groups alone, {group: tree}: the others' parameters and the states of
    their optimizers stay as they are, where a gradient of 0 would let momentum move them on.
    """

    def init(params: Any) -> dict[str, Any]:
        # With its name about it, a state tells which parameter each of its leaves belongs to.
        return {name: tx.init({name: params[name]}) for name, tx in groups.items()}

    def update(updates: Any, state: Any, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        moved, kept = dict(optax.tree.zeros_like(params)), dict(state)
        for name, found in updates.items():
            own = {name: params[name]}
            step, kept[name] = groups[name].update({name: found}, state[name], own)
            moved |= step
        return moved, kept

    return optax.GradientTransformation(init, update)
