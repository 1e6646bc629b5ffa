"""Muon: momentum made orthogonal for matrices (Jordan 2024), Adam for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bigr_jax.train import patterns

Sides = tuple[tuple[int, ...], tuple[int, ...]]

# Tables to look up in, and projections onto them, are lists of vectors, not maps between features,
# and do better with Adam (Jordan 2024; Liu 2025, section 2).
_NOT_A_MAP = frozenset({"vocab", "codes", "position", "state", "time"})
_HEAD_AXES = frozenset({"heads", "head_dim"})
_CONV_AXES = frozenset({"conv_in", "conv_out"})
# The RMS of an Adam update, so that one learning rate serves both halves (Liu 2025, eq. 4).
_RMS = 0.2


def scale_by_muon(
    params: Any, b1: float, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns muon without a learning rate: steps of RMS 0.2 for matrices, `adam` for the others.

    params  arrays or ShapeDtypeStructs, in linen's boxes where axis names shall tell the matrices
    b1      momentum (Nesterov) of the matrices
    """
    leaves, tree = jax.tree.flatten(nn.unbox(params))
    boxes = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
    found = [
        matrix_axes(path, jnp.shape(leaf), getattr(box, "names", None))
        for path, leaf, box in zip(patterns.paths(params), leaves, boxes, strict=True)
    ]
    labels = jax.tree.unflatten(tree, ["adam" if axes is None else "muon" for axes in found])

    def axes_of(updates: Any) -> Any:
        # optax puts empty nodes where a parameter is the other half's, or frozen.
        return jax.tree.map(
            lambda update, axes: update if is_masked(update) else axes,
            updates,
            axes_tree,
            is_leaf=is_masked,
        )

    axes_tree = jax.tree.unflatten(tree, found)
    matrices = optax.chain(
        contrib.scale_by_muon(beta=b1, weight_dimension_numbers=axes_of), _same_rms(axes_of)
    )
    return optax.partition({"muon": matrices, "adam": adam}, labels)


def matrix_axes(
    path: str, shape: tuple[int, ...], names: tuple[str | None, ...] | None
) -> contrib.MuonDimensionNumbers | None:
    """Returns which axes of a parameter are the two sides of a matrix; None: it is left to Adam.

    With logical axis names, `layers` and the unnamed axes of a linear kernel count separate
    matrices, (heads, head_dim) are one side together, and a convolution maps (window, conv_in) to
    conv_out. Without names only a "kernel" of two axes is taken, since more would be guesswork.
    A side of length one (a depthwise convolution, say) leaves no matrix.
    """
    sides: Sides | None
    if names is not None and any(names):
        sides = _named_sides(names)
    else:
        is_linear = len(shape) == 2 and path.rsplit("/", 1)[-1] == "kernel"
        sides = ((0,), (1,)) if is_linear else None
    # The last input axis of a depthwise convolution has length one, whatever its window.
    if sides is None or shape[sides[0][-1]] == 1 or _size(shape, sides[1]) == 1:
        return None
    return contrib.MuonDimensionNumbers(*sides)


def is_masked(node: Any) -> bool:
    """Tells whether a node of a tree stands for a parameter that optax has masked out."""
    return isinstance(node, optax.MaskedNode)


def _named_sides(names: tuple[str | None, ...]) -> Sides | None:
    if _NOT_A_MAP & set(names):
        return None
    axes = [axis for axis, name in enumerate(names) if name != "layers"]
    if not _CONV_AXES & set(names):
        axes = [axis for axis in axes if names[axis] is not None]
    cut = len(axes) - 1
    if axes and names[axes[-1]] in _HEAD_AXES:
        while cut > 0 and names[axes[cut - 1]] in _HEAD_AXES:
            cut -= 1
    return (tuple(axes[:cut]), tuple(axes[cut:])) if cut > 0 else None


def _same_rms(axes_of: Callable[[Any], Any]) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        del params

        def one(update: jax.Array, axes: contrib.MuonDimensionNumbers) -> jax.Array:
            # Entries of an orthogonal [n, m] matrix have an RMS of 1 / sqrt(max(n, m)).
            longer = max(_size(update.shape, side) for side in axes)
            return _RMS * math.sqrt(longer) * update

        return jax.tree.map(one, updates, axes_of(updates))

    return optax.stateless(scale)


def _size(shape: tuple[int, ...], axes: Any) -> int:
    return math.prod(shape[axis] for axis in axes)
