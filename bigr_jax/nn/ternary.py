"""Any network with ternary weights: its linear maps and convolutions, replaced while it runs.

The parameters stay those of the plain network, at the same paths, and no module knows of it:
`nn.intercept_methods` takes the call of every such layer. What a layer has beside its kernel, its
bias, is added after the sums are scaled back. (The official code quantises it with them.)

Source: BitNet b1.58 Reloaded (arXiv 2407.09527), whose layer is for linear maps; in a convolution
an image is what a token is there, and its kernel is one matrix.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError, one_of
from bigr_jax.nn.linear import Linear
from bigr_jax.ops.ternary import MEASURES, absmax_quantise, standardise, ternary_quantise

Array = jax.Array
Path = tuple[str, ...]

# "plain" is the network as it is; "fp" has the norm of the ternary layers, but no rounding.
WEIGHTS = ("plain", "fp", *MEASURES)
# What a frozen layer has beside its kernel, which then holds codes.
SCALE = "kernel_scale"

_LAYERS = (Linear, nn.Dense, nn.Conv)


@dataclasses.dataclass(frozen=True)
class _Around:
    """A network whose `apply` others may replace; all else, such as its sizes, is its own."""

    net: nn.Module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "net":
            raise AttributeError(name)
        return getattr(self.net, name)


@dataclasses.dataclass(frozen=True)
class Ternary(_Around):
    """A network whose layers work with ternary weights; `init` and `apply` are as those of linen.

    Before its product a layer standardises what it gets, without parameters, over all numbers of a
    token; weights become -1, 0 and 1 by one scale for each matrix (see `matrix_axes`), activations
    whole numbers by one for each token.

    Attributes:
      net: a linen module, of which `Linear`, `nn.Dense` and `nn.Conv` are replaced.
      weights: the measure of a matrix's magnitudes, "mean", "median" or "max"; "fp": no rounding.
      keep: layers whose path, "encoder/layers/mlp/up", has this pattern in it stay as they are;
        "": none.
      bits: of the activations, 2 to 8.
      strength: of the rounding, from 0, none, to 1.

    `init` raises UserError for attributes that are not legal, and where `keep` has nothing to keep
    or leaves nothing.
    """

    weights: str = "median"
    keep: str = ""
    bits: int = 8
    strength: float = 1.0

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the variables, which are the plain network's."""
        self._check()
        seen, kept = self._layers(*args, **kwargs)
        if self.keep and not kept:
            paths = ", ".join(map("/".join, seen))
            raise UserError(f"keep={self.keep!r} is in the path of no layer; these are: {paths}")
        if not seen:
            raise UserError(f"keep={self.keep!r} leaves no layer to be ternary")
        return self.net.init(*args, **kwargs)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the network does of (variables, ...), with ternary weights."""
        with _intercepted(self._ternary):
            return self.net.apply(*args, **kwargs)

    def matrices(self, *args: Any, **kwargs: Any) -> dict[Path, tuple[int, ...]]:
        """Returns {path of a kernel: its axes that are of one matrix, counted from the last} of the
        ternary layers; the arguments are those of `init`, of which shapes will do.
        """
        return self._layers(*args, **kwargs)[0]

    def _layers(self, *args: Any, **kwargs: Any) -> tuple[dict[Path, tuple[int, ...]], list[Path]]:
        seen: dict[Path, tuple[int, ...]] = {}
        kept: list[Path] = []

        def note(layer: nn.Module, next_fun: Any, x: Array) -> Any:
            y = next_fun(x)
            if self._stays(layer):
                kept.append(layer.path)
            else:
                kernel = nn.meta.unbox(layer.get_variable("params", "kernel"))
                axes = tuple(axis - kernel.ndim for axis in matrix_axes(layer, kernel.ndim))
                seen[(*layer.path, "kernel")] = axes
            return y

        with _intercepted(note):
            jax.eval_shape(self.net.init, *args, **kwargs)
        return seen, kept

    def _check(self) -> None:
        if self.weights not in WEIGHTS[1:]:
            raise one_of("weights", self.weights, WEIGHTS)
        if not 2 <= self.bits <= 8:
            raise UserError(f"bits={self.bits}: activations have 2 to 8")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength}: legal: 0 to 1")
        try:
            re.compile(self.keep)
        except re.error as error:
            raise UserError(f"keep={self.keep!r} is no pattern: {error}") from None

    def _stays(self, layer: nn.Module) -> bool:
        return bool(self.keep) and re.search(self.keep, "/".join(layer.path)) is not None

    def _ternary(self, layer: Any, next_fun: Any, x: Array) -> Array:
        if self._stays(layer):
            return next_fun(x)
        kernel = nn.meta.unbox(layer.get_variable("params", "kernel"))
        axes = _token_axes(layer, kernel.ndim)
        x = standardise(x, axes)
        if self.weights == "fp":
            return _finished(layer, _product(layer, x, kernel, layer.dtype or x.dtype))
        code, scale = ternary_quantise(
            kernel, self.weights, matrix_axes(layer, kernel.ndim), strength=self.strength
        )
        x, x_scale = absmax_quantise(x, axes, self.bits, strength=self.strength)
        # Codes are few, so that a chip may multiply them in fewer bits and the sums be exact.
        return _rescaled(layer, _product(layer, x, code, jnp.float32), scale, x_scale)


@dataclasses.dataclass(frozen=True)
class Frozen(_Around):
    """A network that works with the codes that `freeze` leaves in place of its ternary kernels.

    Products of `Linear` are of int8 and summed as int32, others of the same whole numbers in
    float32, which is exact up to 2^24. Attributes: net, bits as of the `Ternary` that was trained.
    """

    bits: int = 8

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the network does of (frozen variables, ...)."""
        with _intercepted(self._frozen):
            return self.net.apply(*args, **kwargs)

    def _frozen(self, layer: Any, next_fun: Any, x: Array) -> Array:
        if not layer.has_variable("params", SCALE):
            return next_fun(x)
        code, scale = (layer.get_variable("params", name) for name in ("kernel", SCALE))
        axes = _token_axes(layer, code.ndim)
        x, x_scale = absmax_quantise(standardise(x, axes), axes, self.bits)
        # flax's own layers refuse integers.
        kind = jnp.int8 if isinstance(layer, Linear) else jnp.float32
        sums = _product(layer, x, code, kind)
        return _rescaled(layer, sums.astype(jnp.float32), scale, x_scale)


def ternary(
    net: nn.Module, weights: str, keep: str = "", bits: int = 8, strength: float = 1.0
) -> Any:
    """Returns the network as `weights` of WEIGHTS says: itself for "plain", else a `Ternary`."""
    return net if weights == "plain" else Ternary(net, weights, keep, bits, strength)


def freeze(
    variables: Mapping[str, Any], matrices: Mapping[Path, tuple[int, ...]], measure: str
) -> dict[str, Any]:
    """Returns the variables with codes, int8, in place of the kernels of ternary layers, and beside
    each the scale of its matrices: what `Frozen` works with.

    matrices  of `Ternary.matrices`; measure: its weights
    """

    def frozen(tree: Any, path: Path) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        found = {}
        for name, leaf in tree.items():
            axes = matrices.get((*path, name))
            if axes is None:
                found[name] = frozen(leaf, (*path, name))
                continue
            code, scale = ternary_quantise(leaf, measure, axes)
            found |= {name: code.astype(jnp.int8), SCALE: scale}
        return found

    return {**variables, "params": frozen(nn.meta.unbox(variables["params"]), ())}


def codes(frozen: Mapping[str, Any]) -> list[Array]:
    """Returns the codes, int8, of what `freeze` gave, to count zeros and what has changed."""
    return [leaf for leaf in jax.tree.leaves(frozen) if leaf.dtype == jnp.int8]


def zeros(frozen: Mapping[str, Any]) -> tuple[Array, Array]:
    """Returns how many codes of what `freeze` gave are 0, and how many there are, float32."""
    found = [(jnp.sum(code == 0, dtype=jnp.float32), code.size) for code in codes(frozen)]
    return jnp.stack([zero for zero, _ in found]).sum(), jnp.float32(sum(n for _, n in found))


def matrix_axes(layer: nn.Module, ndim: int) -> tuple[int, ...]:
    """Returns the axes of a layer's kernel that make one matrix: all, but of `Linear` not those
    leading ones of its features that have no name, as the 3 of queries, keys and values.
    """
    if not isinstance(layer, Linear):
        return tuple(range(ndim))
    inputs = ndim - len(layer.features)
    several = 0
    while several < len(layer.features) - 1 and layer.names[inputs + several] is None:
        several += 1
    return (*range(inputs), *range(inputs + several, ndim))


def _token_axes(layer: nn.Module, ndim: int) -> tuple[int, ...]:
    """Returns the axes of what a layer gets that share a scale: of a convolution's image all."""
    if isinstance(layer, Linear):
        return tuple(range(len(layer.features) - len(layer.names), 0))
    return tuple(range(1 - ndim, 0)) if isinstance(layer, nn.Conv) else (-1,)


def _product(layer: Any, x: Array, kernel: Array, dtype: Any) -> Array:
    """Returns what the layer makes of x by another kernel, without its bias."""
    bare = {"bias": False} if isinstance(layer, Linear) else {"use_bias": False}
    other = layer.clone(parent=None, name=None, dtype=dtype, **bare)
    return other.apply({"params": {"kernel": kernel}}, x)


def _rescaled(layer: Any, sums: Array, scale: Array, x_scale: Array) -> Array:
    if isinstance(layer, Linear):
        count = len(layer.names) - len(layer.features)
        scale = scale.reshape(scale.shape[count:])
        x_scale = x_scale.reshape(*x_scale.shape[:-count], *[1] * len(layer.features))
    else:
        scale = scale.reshape(())
    return _finished(layer, sums / (scale * x_scale))


def _finished(layer: Any, y: Array) -> Array:
    y = y.astype(layer.dtype or y.dtype)
    if layer.has_variable("params", "bias"):
        y = y + nn.meta.unbox(layer.get_variable("params", "bias")).astype(y.dtype)
    return y


@contextmanager
def _intercepted(handle: Any) -> Iterator[None]:
    """Calls handle(layer, next_fun, x) in place of every layer of _LAYERS, but not of those that it
    calls itself.
    """
    busy = False

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal busy
        ours = isinstance(context.module, _LAYERS) and context.method_name == "__call__"
        if busy or not ours:
            return next_fun(*args, **kwargs)
        busy = True
        try:
            return handle(context.module, next_fun, *args, **kwargs)
        finally:
            busy = False

    with nn.intercept_methods(intercept):
        yield
