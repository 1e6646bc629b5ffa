"""How well the classes of places are told: intersection over union, summable over hosts."""

from __future__ import annotations

import jax.numpy as jnp

from bigr_jax.api import Array, Sum


def overlaps(found: Array, wanted: Array, asked: Array, classes: int) -> Sum:
    """Returns the places that either of two maps, or both, give to each class.

    found, wanted  int [...], classes of places
    asked          bool [...], the places that count
    Returns Sum(intersections, unions), int32 [classes]; their metric is the mean of intersection /
    union over the classes that either map has, as in PASCAL VOC (Everingham et al. 2010).
    """
    # Whole numbers: float32 would lose count beyond 2^24 places.
    by_class = jnp.arange(classes)
    found, wanted = ((x[..., None] == by_class) & asked[..., None] for x in (found, wanted))
    places = tuple(range(asked.ndim))
    return Sum(
        (found & wanted).sum(places, dtype=jnp.int32),
        (found | wanted).sum(places, dtype=jnp.int32),
    )
