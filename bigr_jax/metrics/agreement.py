"""How often a classifier reads drawn images as the classes they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bigr_jax.api import Array
from bigr_jax.errors import UserError
from bigr_jax.gather import on_host


def agreement(
    predict: Callable[[Array], Array], images: np.ndarray, labels: np.ndarray, size: int = 250
) -> dict[str, float]:
    """Returns the share of images whose likeliest class is the label, and the lowest share of a
    class.

    predict  images float32 [size, H, W, C] in [0, 1] -> logits [size, classes]
    images   uint8, or float in [0, 1], [n, H, W, C]; labels int [n]
    Returns {"agreement", "worst_class"}, both in [0, 1].
    """
    return logits_agreement(read_in_batches(predict, images, size), labels)


def logits_agreement(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns what `agreement` does, from logits [n, classes] and labels int [n].

    Raises ValueError where they differ in number.
    """
    labels = np.asarray(labels)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels {labels.shape} for logits {logits.shape}")
    right = logits.argmax(-1) == labels
    worst = min(right[labels == label].mean() for label in np.unique(labels))
    return {"agreement": float(right.mean()), "worst_class": float(worst)}


def read_in_batches(read: Callable[[Array], Any], images: np.ndarray, size: int = 250) -> Any:
    """Returns what `read` makes of all images, the last batch padded so that one program serves
    all.

    read    images float32 [size, H, W, C] in [0, 1] -> tree of arrays [size, ...], row by row
    images  uint8, or float in [0, 1], [n, H, W, C]
    Returns the tree with NumPy arrays [n, ...]. Matrix products are of full float32 precision, as
    distances between features need. Raises UserError where there are no images.
    """
    if not len(images):
        raise UserError(f"images {images.shape}: there is none to read")
    example = jax.ShapeDtypeStruct((size, *images.shape[1:]), np.float32)
    run, parts = hoisted(read, example), []
    for start in range(0, len(images), size):
        rows = images[start : start + size]
        count = len(rows)
        if rows.dtype == np.uint8:
            rows = rows / np.float32(255)
        padded = np.zeros((size, *rows.shape[1:]), np.float32)
        padded[:count] = rows
        found = on_host(run(padded))
        parts.append(jax.tree.map(lambda x, n=count: x[:n], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def hoisted(read: Callable[[Array], Any], example: jax.ShapeDtypeStruct) -> Callable[[Any], Any]:
    """Returns `read`, compiled, with the weights that it holds as arguments of the program.

    As constants they would make every other network a program of its own, to be compiled anew.
    """
    with jax.default_matmul_precision("highest"):
        traced, shapes = jax.make_jaxpr(read, return_shape=True)(example)
    tree = jax.tree.structure(shapes)
    run = jax.jit(lambda weights, x: jax.core.eval_jaxpr(traced.jaxpr, weights, x))
    return lambda x: jax.tree.unflatten(tree, run(traced.consts, x))
