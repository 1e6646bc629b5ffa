"""Published PyTorch weights <-> variables, through one name table per model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bigr_jax.errors import UserError, nearest, one_of
from bigr_jax.interop import (
    names_biformer,
    names_bigr,
    names_binary_autoencoder,
    names_hydra,
    names_inception,
    names_masked_model,
    names_patch_discriminator,
)
from bigr_jax.interop.layout import (
    UNUSED,
    Entry,
    inward,
    outward,
    published_shape,
    spans,
    whole_shapes,
)
from bigr_jax.models import bigr, binary_autoencoder, inception

Path = tuple[str, ...]
Shape = tuple[int, ...]


class _Family(NamedTuple):
    """What a model class needs: the module of its names, and inputs that initialise it.

    names   has `table(model) -> rows`, and further names that a file may hold: ALIASES, {prefix:
            prefix} of second names for tensors of the table; CARRIED, patterns of constants and
            counters that nothing reads. Both are remembered in the collection "unused"
    part    first name of its tensors in a file that holds several networks, "" where none does
    layer   it does not know the width of its input, which `table` and `inputs` take after the model
    """

    names: ModuleType
    inputs: Callable[..., tuple[Any, ...]]
    part: str = ""
    layer: bool = False


def _image(model: Any) -> tuple[Any, ...]:
    return (jnp.zeros((1, model.image_size, model.image_size, model.channels)),)


def _patch(model: Any) -> tuple[Any, ...]:
    return (jnp.zeros((1, 4 * 2**model.layers, 4 * 2**model.layers, model.channels)),)


def _pixels(model: Any) -> tuple[Any, ...]:
    return (jnp.zeros((1, inception.SIDE, inception.SIDE, 3), jnp.uint8),)


def _tokens(model: Any) -> tuple[Any, ...]:
    bits = jnp.zeros((1, model.length, model.bits))
    counts = jnp.ones((1, model.length), jnp.int32)
    return bits, jnp.zeros((1,), jnp.int32), counts > 0, bits, counts


def _residual(model: Any, width: int) -> tuple[Any, ...]:
    return (jnp.zeros((1, 1, width)),)


def _sentence(model: Any) -> tuple[Any, ...]:
    return (jnp.zeros((1, 1), jnp.int32),)


def _any_image(model: Any) -> tuple[Any, ...]:
    return (jnp.zeros((1, 32, 32, 3)),)


# How many names a message lists of each kind.
_NAMED = 8
_FAMILIES: Mapping[str, _Family] = {
    "BinaryAutoencoder": _Family(names_binary_autoencoder, _image, "ae"),
    "PatchDiscriminator": _Family(names_patch_discriminator, _patch, "disc"),
    "BiGR": _Family(names_bigr, _tokens),
    "InceptionV3": _Family(names_inception, _pixels),
    "Hydra": _Family(names_hydra, _residual, layer=True),
    "MaskedModel": _Family(names_masked_model, _sentence),
    "BiFormer": _Family(names_biformer, _any_image),
    "Pyramid": _Family(names_biformer, _any_image),
}


def published() -> dict[str, nn.Module]:
    """Returns the module of every published name, such as "B-AE-d32-512" or "BiGR-L-d24"."""
    sizes = [(size, bits) for size in ("B", "L", "XL", "XXL") for bits in (16, 20, 24, 32)]
    generators = {
        f"BiGR-{size}-d{bits}": bigr.named(size, bits=bits)
        for size, bits in (*sizes, ("L-512", 32))
    }
    return {**binary_autoencoder.PUBLISHED, **generators}


def from_torch(
    model: nn.Module | str, state: Mapping[str, np.ndarray], *, width: int | None = None
) -> dict[str, Any]:
    """Returns the variables of `model` that hold the published tensors `state`.

    model  a linen module, or the name of a published size such as "BiGR-L-d24" or "B-AE-d24"
    state  {published name: array}, as `files.read` gives it
    width  channels of its input, where the model is a layer that does not know them: Hydra

    The arrays stay in host memory (NumPy, without partitioning metadata) and keep their dtype and
    every bit. Tensors that no computation reads go to the collection "unused". Raises one UserError
    that names every missing tensor, every unknown one and every one of another shape.
    """
    label, model = _resolve(model)
    names = _names(model, width)
    _check(label, names, state)
    flat: dict[Path, Any] = {}
    for entry, span in zip(names.entries, spans(names.entries, names.parts()), strict=True):
        value, ours = np.asarray(state[entry.torch]), names.shape(entry)
        value = value if span is None else value[span]
        one = inward(entry, value, ours)
        if entry.layer is None:
            flat[entry.path] = one
        else:
            flat.setdefault(entry.path, np.empty(ours, value.dtype))[entry.layer] = one
    for name in filter(names.carries, state):
        flat[(UNUSED, *name.split("."))] = np.asarray(state[name])
    for name in filter(names.original, state):
        # That the file has a second name is all there is to remember: its values would go stale.
        flat[(UNUSED, *name.split("."))] = np.zeros(0, np.float32)
    return unflatten_dict(flat)


def to_torch(
    model: nn.Module | str, variables: Mapping[str, Any], *, width: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the published tensors {name: array} of the `variables` of `model`.

    It undoes `from_torch` bit for bit, second names included. Where there is no collection
    "unused", zeros are written for the tensors that no computation reads.
    Raises UserError that names every missing parameter, every unknown one and every other shape.
    """
    label, model = _resolve(model)
    names = _names(model, width)
    flat = {path: np.asarray(value) for path, value in flatten_dict(nn.unbox(variables)).items()}
    state = {
        entry.torch: np.zeros(entry.shape or (), np.float32)
        for entry in names.entries
        if entry.path[0] == UNUSED
    }
    if UNUSED in variables:
        state |= {".".join(path[1:]): value for path, value in flat.items() if path[0] == UNUSED}
    ours = {path: value for path, value in flat.items() if path[0] != UNUSED}
    _check_paths(label, names, ours)
    parts: dict[str, list[np.ndarray]] = {}
    for entry in names.entries:
        if entry.path[0] != UNUSED:
            parts.setdefault(entry.torch, []).append(outward(entry, ours[entry.path]))
    for name, values in parts.items():
        state[name] = np.concatenate(values) if len(values) > 1 else values[0]
    return {name: state[names.original(name) or name] for name in state}


def check(model: nn.Module | str, state: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where `from_torch` would; looks at names and shapes alone, but for second
    names.
    """
    label, model = _resolve(model)
    _check(label, _names(model), state)


def part(model: nn.Module) -> str:
    """Returns the first name of the model's tensors in a file of several networks, see `files`."""
    return _family(model).part


def shapes(model: nn.Module | str, *, width: int | None = None) -> dict[str, Shape]:
    """Returns {published name: shape} of the file that `from_torch` wants; allocates nothing."""
    names = _names(_resolve(model)[1], width)
    return whole_shapes(names.entries, names.parts())


class _Names(NamedTuple):
    """A model's name table, with the shapes that the model itself gives its parameters."""

    entries: list[Entry]
    torch_names: frozenset[str]
    shapes: Mapping[Path, Shape]
    aliases: Mapping[str, str]
    carried: tuple[str, ...]

    def shape(self, entry: Entry) -> Shape:
        return self.shapes.get(entry.path, entry.shape or ())

    def parts(self) -> list[Shape]:
        """Returns the published shape of every row."""
        return [tuple(published_shape(entry, self.shape(entry))) for entry in self.entries]

    def carries(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.carried)

    def original(self, name: str) -> str | None:
        """Returns the name of the table that `name` is a second name of, or None."""
        for prefix, ours in self.aliases.items():
            if name.startswith(prefix) and ours + name[len(prefix) :] in self.torch_names:
                return ours + name[len(prefix) :]
        return None


def _resolve(model: nn.Module | str) -> tuple[str, nn.Module]:
    if not isinstance(model, str):
        return type(model).__name__, model
    known = published()
    if model not in known:
        raise one_of("model", model, known)
    return model, known[model]


def _family(model: nn.Module) -> _Family:
    family = _FAMILIES.get(type(model).__name__)
    if family is None:
        raise one_of("model", type(model).__name__, _FAMILIES)
    return family


def _names(model: nn.Module, width: int | None = None) -> _Names:
    family = _family(model)
    if family.layer != (width is not None):
        wants = "needs" if family.layer else "does not take"
        raise ValueError(f"{type(model).__name__} {wants} a width; width={width}")
    sized = (model,) if width is None else (model, width)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *family.inputs(*sized)))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(nn.unbox(variables)).items()}
    entries = list(family.names.table(*sized))
    covered = {entry.path for entry in entries if entry.path[0] != UNUSED}
    if covered != set(shapes):
        raise ValueError(f"name table and parameters differ: {sorted(covered ^ set(shapes))}")
    aliases = getattr(family.names, "ALIASES", {})
    names = frozenset(entry.torch for entry in entries)
    return _Names(entries, names, shapes, aliases, getattr(family.names, "CARRIED", ()))


def _check(label: str, names: _Names, state: Mapping[str, np.ndarray]) -> None:
    wanted = whole_shapes(names.entries, names.parts())
    missing = [name for name in wanted if name not in state]
    unknown = [
        name + nearest(name, missing)
        for name in state
        if name not in wanted and not names.carries(name) and not names.original(name)
    ]
    differing = [
        f"{name} differs from {original}, whose second name it is"
        for name in state
        if (original := names.original(name)) in state
        and np.asarray(state[name]).tobytes() != np.asarray(state[original or name]).tobytes()
    ]
    shapes = [
        f"{name} is {np.shape(state[name])}, wanted {shape}"
        for name, shape in wanted.items()
        if name in state and np.shape(state[name]) != shape
    ]
    _raise(f"the weights do not fit {label}", missing, unknown, shapes, differing)


def _check_paths(label: str, names: _Names, flat: Mapping[Path, np.ndarray]) -> None:
    wanted = {"/".join(path): shape for path, shape in names.shapes.items()}
    given = {"/".join(path): value.shape for path, value in flat.items()}
    missing = [path for path in wanted if path not in given]
    unknown = [path for path in given if path not in wanted]
    shapes = [
        f"{path} is {given[path]}, wanted {shape}"
        for path, shape in wanted.items()
        if path in given and given[path] != shape
    ]
    _raise(f"the variables do not fit {label}", missing, unknown, shapes)


def _raise(head: str, *problems: Iterable[str]) -> None:
    kinds = ("missing", "unknown", "of another shape", "contradictory")
    parts = [
        f"{len(found)} {kind}: {', '.join(found[:_NAMED])}" + ", ..." * (len(found) > _NAMED)
        for kind, found in zip(kinds, map(list, problems), strict=False)
        if found
    ]
    if parts:
        raise UserError(f"{head}: {'; '.join(parts)}")
