"""What a method that draws images class by class has to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigr_jax import pictures
from bigr_jax.api import Array, Report
from bigr_jax.data import Source
from bigr_jax.metrics.agreement import agreement, read_in_batches
from bigr_jax.metrics.generation import quality
from bigr_jax.metrics.probe import best_layer, linear_probe

Read = Callable[[Array], tuple[Array, Array]]
SHOWN = 10


def drawing_report(
    draw: Callable[[np.ndarray], np.ndarray],
    data: Mapping[str, Source],
    labels: np.ndarray,
    read: Read | None = None,
    *,
    conditional: bool = True,
) -> Report:
    """Returns a grid, a row per class, and how the drawn images compare with the test split.

    draw         labels int [n] -> images float [n, H, W, C] in [0, 1]
    labels       every class equally often, one after another
    read         images -> (logits, features): a trained classifier, in whose features images are
                 compared (`metrics.generation.quality`); None: the pictures are all there is
    conditional  whether the classes were asked for, so that it means something to read them
    """
    images = draw(labels)
    rows = images.reshape(len(np.unique(labels)), -1, *images.shape[1:])[:, :SHOWN]
    shown = rows.shape[1]
    names = data["train"].info.class_names if conditional else ()
    picture = pictures.grid(rows.reshape(-1, *images.shape[1:]), shown, names=names)
    if read is None:
        return Report({}, {"samples": picture})
    test = everything(data["test"])
    found = quality(images, labels if conditional else None, test["image"], read)
    right = agreement(lambda x: read(x)[0], test["image"], test["label"])["agreement"]
    return Report({**found, "referee_test_accuracy": right}, {"samples": picture})


def probe_report(
    codes: Callable[[Array], Array], pooled: Callable[[Array], Array], data: Mapping[str, Source]
) -> dict[str, float]:
    """Returns the accuracies of linear probes, learnt from the training split, on the test split.

    codes   images float32 [size, H, W, C] in [0, 1] -> codes [size, ...]
    pooled  codes -> features [size, layers, D]
    Returns {"probe": that of the layer chosen on held-out training images, "probe_layer": which
    one, "probe/0": ..., and beside them "probe_pixels" and "probe_codes"}, in [0, 1].
    """

    def read(images: Array) -> tuple[Array, Array]:
        found = codes(images)
        return pooled(found), found.reshape(len(found), -1)

    layers, flat, pixels, labels = [], [], [], []
    for split in ("train", "test"):
        rows = everything(data[split])
        features, bits = read_in_batches(read, rows["image"])
        layers.append(np.moveaxis(features, 1, 0))
        flat.append(bits)
        pixels.append(rows["image"].reshape(len(bits), -1))
        labels.append(rows["label"])
    layer, best, accuracies = best_layer(layers[0], labels[0], layers[1], labels[1])
    return {
        "probe": best,
        "probe_layer": float(layer),
        **{f"probe/{number}": value for number, value in enumerate(accuracies)},
        "probe_pixels": linear_probe(pixels[0], labels[0], pixels[1], labels[1]),
        "probe_codes": linear_probe(flat[0], labels[0], flat[1], labels[1]),
    }


def everything(source: Source) -> Any:
    """Returns all rows of a source."""
    return source.gather(np.arange(len(source)))
