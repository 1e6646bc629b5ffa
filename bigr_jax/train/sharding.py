"""Where every array lives: one mesh, one table of names, parameters born sharded.

A dimension's placement is the first that applies: a regex of the config (`sharding`), the logical
name that the module put on it (`RULES`), the largest dimension that the fsdp axis divides,
replication. Replicated bytes are counted, since a rule that quietly misses costs a pod its memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigr_jax.errors import UserError, one_of
from bigr_jax.train import patterns

AXES = ("data", "fsdp", "model", "seq")

# Names that no row mentions (codes, layers, position, time, state, region, ...) stay whole.
# Rows are cut by fsdp first, as parameters are: with data first, XLA takes rows of one device for
# those of another in networks without constraints on data, fsdp and model at once, and the gradient
# is wrong without a word (jaxlib 0.10 to 0.12; `tests/sharding/test_row_order.py`).
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "embed": "fsdp",
    "mlp": "model",
    "heads": "model",
    "vocab": "model",
    "modulation": "model",
    "conv_out": "fsdp",
    "examples": ("fsdp", "data"),
    "batch": ("fsdp", "data"),
    "length": "seq",
    "act_heads": "model",
    "act_mlp": "model",
}
LINEN_RULES = tuple(RULES.items())
REPLICATED_LIMIT = 0.02
# Less than this on every device is no loss, whatever its share of a small model.
REPLICATED_BYTES = 1 << 20


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over the axes `data, fsdp, model, seq`; one size may be -1: all devices that
    are left.

    Of several TPU slices, the data axis crosses the slow network between them, the other axes stay
    within one. Raises UserError when the sizes do not multiply to the number of devices, and where
    the slices do not divide the data axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    for name in sizes:
        if name not in AXES:
            raise one_of("mesh axis", name, AXES)
    shape = [int(sizes.get(name, 1)) for name in AXES]
    given = ", ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise UserError(f"mesh {given}: every size is positive, and at most one is -1")
    if -1 in shape and count % fixed == 0:
        shape[shape.index(-1)] = count // fixed
    if math.prod(shape) != count:
        raise UserError(
            f"mesh {given} does not fit {count} device(s): the sizes must multiply to {count}, "
            "and -1 takes those that are left, e.g. --config.mesh.data=-1"
        )
    # GPUs have the number of their node there, and a network between nodes that fsdp can use.
    slices = len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"})
    if slices > 1:
        return _over_slices(shape, slices, devices)
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a batch: rows over fsdp and data."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a scalar or a key: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def root_key(seed: int, mesh: Mesh) -> jax.Array:
    """Returns `jax.random.key(seed)`, whole on every device of a mesh, which may span hosts."""
    data = np.asarray(jax.random.key_data(jax.random.key(seed)))
    placed = jax.make_array_from_callback(data.shape, replicated(mesh), lambda index: data[index])
    return jax.random.wrap_key_data(placed)


def path_name(path: Sequence[Any]) -> str:
    """Returns a tree path as "params/encoder/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def place(variables: Any, mesh: Mesh, overrides: Sequence[tuple[str, tuple[Any, ...]]] = ()) -> Any:
    """Returns a NamedSharding for every leaf of an abstract tree of variables (linen boxes or plain
    leaves).

    overrides  (regex over the path, mesh axes per dimension) pairs, first match wins
    Raises UserError for a pattern that matches nothing, an axis that does not divide, and more than
    2 % of the bytes, and 1 MiB, left whole on an fsdp mesh.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        variables, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
    used: set[str] = set()
    whole: list[tuple[int, str]] = []
    shardings, total = [], 0
    for path, leaf in leaves:
        name = path_name(path)
        value = leaf.unbox() if isinstance(leaf, nn.meta.AxisMetadata) else leaf
        spec = _overridden(name, value.shape, mesh, overrides, used)
        if spec is None:
            names = getattr(leaf, "names", (None,) * len(value.shape))
            spec = _fallback(_by_name(names, value.shape, mesh), value.shape, mesh)
        size = math.prod(value.shape) * np.dtype(value.dtype).itemsize
        total += size
        if mesh.shape["fsdp"] > 1 and not any(spec):
            whole.append((size, name))
        shardings.append(NamedSharding(mesh, PartitionSpec(*spec)))
    for pattern, _ in overrides:
        if pattern not in used:
            names = patterns.examples([path_name(path) for path, _ in leaves])
            raise UserError(f"sharding pattern {pattern!r} matches no parameter; there are {names}")
    _refuse_replication(whole, total)
    return jax.tree_util.tree_unflatten(treedef, shardings)


def place_like(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Returns shardings for an optimizer state: a leaf whose path ends in a parameter's path lies
    where that lies.
    """
    named = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(shardings), strict=True
        )
    }

    def lookup(path: Sequence[Any], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = named.get(path_name(path[start:]), (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(lookup, tree)


def _over_slices(shape: Sequence[int], slices: int, devices: Sequence[jax.Device]) -> Mesh:
    if shape[0] % slices:
        raise UserError(
            f"mesh data={shape[0]} does not divide over {slices} slices: only the data axis "
            "crosses the network between them, so it must be a multiple of their number"
        )
    within, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 4)


def _overridden(
    name: str, shape: tuple[int, ...], mesh: Mesh, overrides: Sequence[Any], used: set[str]
) -> list[Any] | None:
    for pattern, axes in overrides:
        if re.search(pattern, name):
            used.add(pattern)
            if len(axes) != len(shape):
                raise UserError(f"sharding {pattern!r}: {axes} for {name} of shape {shape}")
            for size, axis in zip(shape, axes, strict=True):
                if axis is not None and size % mesh.shape[axis]:
                    raise UserError(
                        f"sharding {pattern!r}: axis {axis!r} of size {mesh.shape[axis]} does not "
                        f"divide {size}, a dimension of {name}"
                    )
            return list(axes)
    return None


def _by_name(names: Sequence[str | None], shape: tuple[int, ...], mesh: Mesh) -> list[Any]:
    spec: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        axis = RULES.get(name) if name else None
        axes = [a for a in ((axis,) if isinstance(axis, str) else axis or ()) if mesh.shape[a] > 1]
        # Of several axes as many, the first first, as divide the dimension together.
        while axes and size % math.prod(mesh.shape[a] for a in axes):
            axes.pop()
        free = not set(axes) & {a for entry in spec for a in _axes(entry)}
        spec.append((axes[0] if len(axes) == 1 else tuple(axes)) if axes and free else None)
    return spec


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def _fallback(spec: list[Any], shape: tuple[int, ...], mesh: Mesh) -> list[Any]:
    count = mesh.shape["fsdp"]
    free = [i for i, size in enumerate(shape) if spec[i] is None and size % count == 0]
    taken = any("fsdp" in _axes(entry) for entry in spec)
    if count > 1 and not taken and free:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return spec


def _refuse_replication(whole: list[tuple[int, str]], total: int) -> None:
    size = sum(item for item, _ in whole)
    if size > max(REPLICATED_LIMIT * total, REPLICATED_BYTES):
        largest = ", ".join(name for _, name in sorted(whole, reverse=True)[:5])
        raise UserError(
            f"{size / total:.1%} of the parameter bytes would lie whole on every device of the "
            f"fsdp axis (limit {REPLICATED_LIMIT:.0%}): {largest}"
        )
