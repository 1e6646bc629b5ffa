"""What a trained BiGR does with images, each from pixels to pixels as one program to compile.

Below, `variables` are {"generator": tree, "tokenizer": tree}; images are uint8 [B, H, W, C]; every
image draws with its own key, `key` folded with its number, int [B]; labels are int [B].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigr_jax.api import Array
from bigr_jax.data.augment import to_float
from bigr_jax.generate import editing
from bigr_jax.generate.codes import sample_codes
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.tasks import autoencoder
from bigr_jax.tasks.code_generator import CodeGenerator


def sample(
    task: CodeGenerator,
    variables: Any,
    key: Array,
    numbers: Array,
    labels: Array,
    *,
    sampling: MaskedSampling,
) -> Array:
    """Returns an image of each class."""
    own, how = variables["generator"], (task.schedule, sampling)
    codes = sample_codes(task.net, own, _keys(key, numbers), task.asked(labels), *how)
    return decode(task, variables, key, numbers, codes)


def inpaint(
    task: CodeGenerator,
    variables: Any,
    key: Array,
    numbers: Array,
    images: Array,
    mask: Array,
    labels: Array | None = None,
    *,
    sampling: MaskedSampling,
) -> Array:
    """Returns images whose tokens in `mask` [B, N] are drawn anew, see `generate.editing`."""
    # Bits are drawn like those that the generator was trained on; the first key is for them.
    first, then = _two_keys(key, numbers)
    codes = _drawn_codes(task, variables, first, images)
    own, how = variables["generator"], (task.schedule, sampling)
    codes = editing.inpaint(task.net, own, then, codes, mask, *how, labels=labels)
    return decode(task, variables, key, numbers, codes)


def enrich(
    task: CodeGenerator,
    variables: Any,
    key: Array,
    numbers: Array,
    images: Array,
    labels: Array | None = None,
    *,
    sampling: MaskedSampling,
    sweeps: int,
) -> Array:
    """Returns images with detail added, see `generate.editing`."""
    first, then = _two_keys(key, numbers)
    codes = _drawn_codes(task, variables, first, images)
    how: Any = {"labels": labels, "sweeps": sweeps}
    own = variables["generator"]
    codes = editing.enrich(task.net, own, then, codes, task.schedule, sampling, **how)
    return decode(task, variables, key, numbers, codes)


def interpolate(
    task: CodeGenerator,
    variables: Any,
    key: Array,
    numbers: Array,
    first: Array,
    second: Array,
    share: Array,
    *,
    sampling: MaskedSampling,
) -> Array:
    """Returns images of two classes mixed, `share` [B] of the first."""
    own, ends, how = variables["generator"], (first, second), (task.schedule, sampling)
    codes = editing.interpolate(task.net, own, _keys(key, numbers), ends, share, *how)
    return decode(task, variables, key, numbers, codes)


def encode(task: CodeGenerator, variables: Any, key: Array, numbers: Array, images: Array) -> Array:
    """Returns the likelier codes, uint8 {0, 1} [B, N, K]."""
    return _codes(task, variables, images).astype(jnp.uint8)


def decode(task: CodeGenerator, variables: Any, key: Array, numbers: Array, codes: Array) -> Array:
    """Returns the images of codes {0, 1} [B, N, K]."""
    bits = codes.astype(jnp.float32)
    images = autoencoder.decode(task.tokenizer, variables["tokenizer"], bits)
    return jnp.round(images * 255.0).astype(jnp.uint8)


def features(
    task: CodeGenerator,
    variables: Any,
    key: Array,
    numbers: Array,
    images: Array,
    *,
    layer: int | None,
) -> Array:
    """Returns features without a class, float32 [B, width], or of all layers [B, layers, width]."""
    net, own, codes = task.net, variables["generator"], _codes(task, variables, images)
    if layer is None:
        return net.apply(own, codes, method="pooled")  # type: ignore[return-value]
    found: Any = net.apply(own, codes, net.null(len(codes)), layer, method="features")
    return found.mean(axis=1)


PROGRAMS: Mapping[str, Callable[..., Array]] = {
    "sample": sample,
    "inpaint": inpaint,
    "enrich": enrich,
    "interpolate": interpolate,
    "encode": encode,
    "decode": decode,
    "features": features,
}


def _keys(key: Array, numbers: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _two_keys(key: Array, numbers: Array) -> tuple[Array, Array]:
    return tuple(jax.vmap(jax.random.split, out_axes=1)(_keys(key, numbers)))  # type: ignore


def _codes(task: CodeGenerator, variables: Any, images: Array) -> Array:
    return autoencoder.encode(task.tokenizer, variables["tokenizer"], to_float(images))


def _drawn_codes(task: CodeGenerator, variables: Any, keys: Array, images: Array) -> Array:
    # One key per image, which a vmap of the whole encoder would also give, but not on a mesh.
    net, own = task.tokenizer, {"params": variables["tokenizer"]["params"]["autoencoder"]}
    logits: Any = net.apply(own, to_float(images), method="encode")
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, logits.shape[1:]))(keys)
    codes, _ = net.apply(own, logits, None, uniforms, method="quantize")
    return codes.reshape(len(images), -1, net.bits)
