"""One set of parameters trained on images of several sizes.

Every step draws one of them for the whole batch: each is a branch of one program, which has static
shapes thereby.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from bigr_jax.api import Array, Batch, Method
from bigr_jax.errors import UserError


class Sizable(Protocol):
    """A task on images of one size, whose networks can read others with the same parameters."""

    def method(self) -> Method:
        """Returns the pure functions that the trainer takes."""

    def at_size(self, size: int) -> Self:
        """Returns the task on images of another size. Raises UserError for one that it cannot."""


def at_sizes(task: Sizable, sizes: Sequence[int]) -> Method:
    """Returns the method of a task, each of whose training steps is at one of several sizes.

    sizes  in pixels, equally likely; the images are scaled to them. (): the task's own alone

    All else, evaluation too, is at the task's own size. `ops.flops.count` takes the dearest size.
    Raises UserError for a size that the networks cannot take.
    """
    if not all(type(size) is int for size in sizes):
        raise UserError(f"data.sizes={sizes!r}; legal: (), or sides in pixels, (16, 24)")
    method = task.method()
    if not sizes:
        return method
    others = [task.at_size(size).method() for size in sizes]

    def of_one(functions: Sequence[Any]) -> Callable[..., Any]:
        def drawn(first: Any, key: Array, batch: Batch, *rest: Any) -> Any:
            size_key, key = jax.random.split(key)
            chosen = jax.random.randint(size_key, (), 0, len(sizes))
            branches = [
                functools.partial(_at, function, size, batch, rest)
                for function, size in zip(functions, sizes, strict=True)
            ]
            return jax.lax.switch(chosen, branches, first, key)

        return drawn

    loss = of_one([other.loss for other in others])
    step = None if method.step is None else of_one([other.step for other in others])
    return method._replace(loss=loss, step=step)


def scaled(batch: Batch, size: int) -> Batch:
    """Returns a batch whose images, uint8 [B, H, W, C], are `size` pixels high and wide.

    Bicubically, smoothed first where they become smaller. Raises UserError for a batch of stored
    codes.
    """
    if "image" not in batch:
        raise UserError(
            "data.sizes: the data hold codes, which are of one size; legal: (), or data with images"
        )
    images = batch["image"]
    if images.shape[1:3] == (size, size):
        return batch
    shape = (len(images), size, size, images.shape[-1])
    found = jax.image.resize(images.astype(jnp.float32), shape, "cubic")
    return {**batch, "image": jnp.round(jnp.clip(found, 0, 255)).astype(images.dtype)}


def _at(function: Any, size: int, batch: Batch, rest: Sequence[Any], first: Any, key: Array) -> Any:
    return function(first, key, scaled(batch, size), *rest)
