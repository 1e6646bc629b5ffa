"""A reader of captioned images, and what a method that draws captions has to show to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax import pictures
from bigr_jax.api import Array, Aux, Batch, Given, Method, Report, Sum, Variables
from bigr_jax.data.augment import augment, to_float
from bigr_jax.metrics.agreement import read_in_batches
from bigr_jax.metrics.generation import quality
from bigr_jax.nn.embed import Text
from bigr_jax.tasks.drawing import SHOWN, Read, everything

ASKED = 20
_TEMPERATURE, _SAME = 0.1, 1e-4


def caption_reader(net: nn.Module, *, augmentation: str = "", smoothing: float = 0.0) -> Method:
    """Returns the method that trains `net`: images -> (vectors [B, F], features), so that an
    image's vector points to its own caption rather than to the others of the batch.

    augmentation  a spec of `bigr_jax.data.augment`, applied on the device
    smoothing     label smoothing in [0, 1)

    A batch holds {"image", "text": float [B, L, F], "text_mask": bool [B, L]}; equal captions
    count alike. Source: the image side of CLIP's loss (arXiv 2103.00020), with texts that stay.
    """

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, to_float(batch["image"]))

    def told(variables: Any, images: Array, batch: Batch, smoothing: float) -> tuple[Array, Array]:
        vectors, _ = net.apply(variables, images)
        asked = summary(Text(batch["text"], batch["text_mask"]))
        same = (asked @ asked.T > 1 - _SAME).astype(jnp.float32)
        logits = unit(vectors) @ asked.T / _TEMPERATURE
        targets = optax.smooth_labels(same / same.sum(1, keepdims=True), smoothing)
        cost = optax.softmax_cross_entropy(logits, targets)
        right = jnp.take_along_axis(same, logits.argmax(1)[:, None], axis=1)[:, 0]
        return cost, right

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        images = augment(key, to_float(batch["image"]), augmentation)
        cost, right = told(variables, images, batch, smoothing)
        return cost.mean(), Aux({"accuracy": right.mean()})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        cost, right = told(variables, to_float(batch["image"]), batch, 0.0)
        mask, weight = batch["mask"], batch["mask"].sum()
        return {
            "accuracy": Sum((right * mask).sum(), weight),
            "loss": Sum((cost * mask).sum(), weight),
        }

    return Method(init=init, loss=loss, evaluate=evaluate)


def caption_report(
    draw: Callable[[np.ndarray], np.ndarray],
    asked: np.ndarray,
    test: Any,
    per_caption: int,
    read: Read | None = None,
) -> Report:
    """Returns a grid, a row per caption, and whether a reader finds in it what was asked for.

    draw         numbers int [n] of captions in `asked` -> images float [n, H, W, C] in [0, 1]
    asked        rows of `test`, int [M], one for each of the captions, as `distinct` gives them
    test         a source of captioned images, see `data.captioned`
    per_caption  images drawn of each
    read         images -> (vectors, features) of a trained `caption_reader`; None: nobody looks

    Among the M captions, the reader chooses the nearest one. "caption_top1" is how often it is that
    asked for, "caption_top1_shuffled" how often it is any given other one, as with captions handed
    out in another order, "caption_top1_real" how often the reader is right of the test images;
    "frechet" and what goes with it are of its features (`metrics.generation.quality`).
    """
    numbers = np.repeat(np.arange(len(asked)), per_caption)
    images = draw(numbers)
    rows = images.reshape(len(asked), per_caption, *images.shape[1:])[:, :SHOWN]
    names = [test.captions[test.which[row]] for row in asked]
    picture = pictures.grid(rows.reshape(-1, *images.shape[1:]), rows.shape[1], names=names)
    if read is None:
        return Report({}, {"samples": picture})
    real = everything(test)
    text = Text(real["text"][asked], real["text_mask"][asked])
    wanted = np.asarray(summary(text))
    same = test.which[:, None] == test.which[asked]
    known = same.any(1)
    drawn = _nearest(read, images, wanted) == numbers
    seen = _nearest(read, real["image"][known], wanted) == same[known].argmax(1)
    found = {
        "caption_top1": float(drawn.mean()),
        "caption_top1_shuffled": float((~drawn).mean() / max(1, len(asked) - 1)),
        "caption_top1_real": float(seen.mean()),
    }
    found |= quality(images, None, real["image"], read)
    return Report(found, {"samples": picture})


def distinct(test: Any, most: int = ASKED) -> np.ndarray:
    """Returns a row of a captioned source for each of its captions, int [M]; where there are more
    than `most`, of as many that lie evenly.
    """
    _, first = np.unique(test.which, return_index=True)
    return first[np.linspace(0, len(first) - 1, min(len(first), most)).astype(int)]


def summary(text: Text) -> Array:
    """Returns the mean of each text's tokens, of length 1: float32 [B, F]."""
    mask = jnp.asarray(text.mask)[..., None]
    return unit(jnp.where(mask, jnp.asarray(text.features).astype(jnp.float32), 0).sum(1))


def unit(vectors: Array) -> Array:
    """Returns vectors [..., F] scaled to length 1; zero stays zero."""
    return vectors * jax.lax.rsqrt((vectors**2).sum(-1, keepdims=True) + 1e-12)


def _nearest(read: Read, images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    vectors = read_in_batches(lambda x: read(x)[0], images)
    return (vectors @ wanted.T).argmax(1)
