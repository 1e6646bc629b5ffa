"""Perceptual distance between images, pluggable; its weights are the user's to bring."""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from bigr_jax.errors import UserError, one_of

Array = jax.Array
Weights = dict[str, list[Array]]

# The 3x3 convolutions of VGG16 by their index among the published "features", tapped at the end of
# each group (relu1_2, 2_2, 3_3, 4_3, 5_3); 2x2 max pooling lies between groups.
_GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_FEATURES = (64, 128, 256, 512, 512)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

DISTANCES = ("none", "lpips")
_STANDS_IN = contextvars.ContextVar("stands_in", default=False)


class Distance(Protocol):
    """A distance per image: x, y: [batch, height, width, 3] in [0, 1] -> float32 [batch]."""

    def __call__(self, x: Array, y: Array) -> Array:
        """Returns the distances [batch]."""


def perceptual(name: str, state: Mapping[str, np.ndarray] | None = None) -> Distance:
    """Returns the distance of the config value `name`: "none" (zero) or "lpips".

    state: for "lpips", the published tensors by name, as `interop.files.read` gives them; see
    `lpips`; None: the distance cannot be computed, but a model that was trained with it be used.
    Raises UserError for another name or for weights that do not fit; the distance itself, for None.
    """
    if name not in DISTANCES:
        raise one_of("perceptual", name, DISTANCES)
    if name == "none":
        return Partial(_zero)
    return Partial(_absent) if state is None else lpips(state)


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Puts noise in the place of absent weights, for programs that are compiled and never run."""
    before = _STANDS_IN.set(True)
    try:
        yield
    finally:
        _STANDS_IN.reset(before)


def _absent(x: Array, y: Array) -> Array:
    if _STANDS_IN.get():
        return _lpips(_noise(), x, y)
    raise UserError("perceptual='lpips' needs a weights file (.npz or .safetensors); none given")


def lpips(state: Mapping[str, np.ndarray]) -> Distance:
    """Returns LPIPS with VGG16 features, as a pytree that a jitted function can take as argument.

    state: the published tensors: convolutions as "net.slice1.0.weight" (lpips, taming) or
    "features.0.weight" (torchvision), linear layers as "lin0.model.1.weight". Raises UserError that
    names every missing tensor and every one of another shape; other tensors are not looked at.

    The distance is fed images in [0, 1] as they are, although its constants expect [-1, 1]: the
    published autoencoders were trained so. Source: LPIPS (arXiv 1801.03924, equation 1).
    """
    return Partial(_lpips, _weights(state))


def _weights(state: Mapping[str, np.ndarray]) -> Weights:
    named = {
        re.sub(r"^(net\.slice\d|vgg\.features|features)\.", "", k): v for k, v in state.items()
    }
    wanted = [f"{i}.{kind}" for group in _GROUPS for i in group for kind in ("weight", "bias")]
    wanted += [f"lin{i}.model.1.weight" for i in range(len(_GROUPS))]
    missing = [name if name.startswith("lin") else f"features.{name}" for name in wanted]
    missing = [text for text, name in zip(missing, wanted, strict=True) if name not in named]
    if missing:
        raise UserError(
            f"the weights do not fit LPIPS: {len(missing)} missing: {', '.join(missing)}"
        )
    _check_shapes(named)
    kernels = [jnp.asarray(named[f"{i}.weight"].transpose(2, 3, 1, 0)) for g in _GROUPS for i in g]
    biases = [jnp.asarray(named[f"{i}.bias"]) for group in _GROUPS for i in group]
    linear = [jnp.asarray(named[f"lin{i}.model.1.weight"].reshape(-1)) for i in range(len(_GROUPS))]
    return {"kernels": kernels, "biases": biases, "linear": linear}


def _check_shapes(named: Mapping[str, np.ndarray]) -> None:
    channels, wrong = 3, []
    for index, group in enumerate(_GROUPS):
        for i in group:
            features = len(named[f"{i}.bias"])
            wanted = {f"{i}.weight": (features, channels, 3, 3), f"{i}.bias": (features,)}
            wrong += [(name, shape) for name, shape in wanted.items() if named[name].shape != shape]
            channels = features
        name = f"lin{index}.model.1.weight"
        if named[name].shape != (1, channels, 1, 1):
            wrong.append((name, (1, channels, 1, 1)))
    if wrong:
        texts = [f"{name} is {named[name].shape}, wanted {shape}" for name, shape in wrong]
        raise UserError(f"the weights do not fit LPIPS: {'; '.join(texts)}")


def _noise() -> Weights:
    rng, channels = np.random.default_rng(0), 3
    found: Weights = {"kernels": [], "biases": [], "linear": []}
    for group, features in zip(_GROUPS, _FEATURES, strict=True):
        for _ in group:
            kernel = rng.standard_normal((3, 3, channels, features), np.float32)
            found["kernels"].append(jnp.asarray(kernel))
            found["biases"].append(jnp.asarray(kernel[0, 0, 0]))
            channels = features
        found["linear"].append(jnp.asarray(kernel[0, 0, 0]))
    return found


def _zero(x: Array, y: Array) -> Array:
    return jnp.zeros(x.shape[:1], jnp.float32)


def _lpips(weights: Weights, x: Array, y: Array) -> Array:
    # x, y: [batch, height, width, 3]
    if x.shape != y.shape or x.shape[-1] != 3 or min(x.shape[1:3]) < 16:
        raise ValueError(f"images {x.shape}, {y.shape} must be alike, RGB and at least 16 x 16")
    total = jnp.zeros(x.shape[:1], jnp.float32)
    taps = zip(_features(weights, x), _features(weights, y), weights["linear"], strict=True)
    for a, b, linear in taps:
        difference = jnp.square(_unit(a) - _unit(b))
        total += jnp.einsum("bhwc,c->b", difference, linear) / (a.shape[1] * a.shape[2])
    return total


def _features(weights: Weights, x: Array) -> list[Array]:
    x = (x.astype(jnp.float32) - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    layers = iter(zip(weights["kernels"], weights["biases"], strict=True))
    taps = []
    for index, group in enumerate(_GROUPS):
        if index:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for _ in group:
            kernel, bias = next(layers)
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + bias)
        taps.append(x)
    return taps


def _unit(x: Array) -> Array:
    # The root of a sum of squares has no gradient at zero, where every channel is cut off by relu.
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0)) * (squares > 0)
    return x / (norm + 1e-10)
