"""Where the item that was taken stands among all others, or among some that were drawn.

Sums add up over batches and hosts. Ties count against the item, so that a scorer which gives all
the same is worth nothing, and so does what is no number.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bigr_jax.api import Array, Sum


def ranks(scores: Array, target: Array, exclude: Array | None = None) -> Array:
    """Returns the place of the target by falling scores, 1 = first, int32 [batch].

    scores: float [batch, items], target: int [batch], exclude: bool [batch, items], what is no
    candidate; the target always is.
    """
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    others = jnp.arange(scores.shape[1]) != target[:, None]
    if exclude is not None:
        others &= ~exclude
    return 1 + (others & ~(scores < own)).sum(axis=1, dtype=jnp.int32)


def sampled_ranks(
    scores: Array, target: Array, others: Array, counts: Array | None = None
) -> Array:
    """Returns the place of the target among itself and drawn items, int32 [batch].

    scores: float [batch, items], target: int [batch], others: int [batch, n], counts: bool [batch,
    n], which of them count; None: all.
    """
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    better = ~(jnp.take_along_axis(scores, others, axis=1) < own)
    return 1 + (better if counts is None else better & counts).sum(axis=1, dtype=jnp.int32)


def drawn_items(key: Array, weights: Array, exclude: Array, count: int) -> tuple[Array, Array]:
    """Draws `count` different items for every row, each next one by its weight among those left:
    all 1 for uniform ones, or how often an item is taken.

    weights: float [items], 0 or more, exclude: bool [batch, items] -> items, int32 [batch, count],
    and which of them count, bool [batch, count]: all, unless too few are left to be drawn.
    Source: Gumbel top-k (arXiv 1903.06059).
    """
    noise = jax.random.gumbel(key, exclude.shape)
    found, items = jax.lax.top_k(jnp.where(exclude, -jnp.inf, jnp.log(weights) + noise), count)
    return items.astype(jnp.int32), found > -jnp.inf


def sums(places: Array, ks: Sequence[int], weight: Array) -> dict[str, Sum]:
    """Returns {"hr@k", "ndcg@k" of every k, "mrr"} of one relevant item a row.

    places: int [batch], its rank, 1 = first; weight: float [batch], of a row. NDCG is 1 / log2(1 +
    rank) up to k, MRR 1 / rank of any.
    """
    rank, total = places.astype(jnp.float32), weight.sum()
    found = {"mrr": Sum((weight / rank).sum(), total)}
    for k in ks:
        inside = weight * (places <= k)
        found[f"hr@{k}"] = Sum(inside.sum(), total)
        found[f"ndcg@{k}"] = Sum((inside / jnp.log2(1 + rank)).sum(), total)
    return found


def rank_metrics(
    scores: Array,
    target: Array,
    exclude: Array | None,
    ks: Sequence[int],
    weight: Array | None = None,
) -> dict[str, Sum]:
    """Returns `sums` of the ranks among all candidates, see `ranks`; weight None: 1 a row."""
    weight = jnp.ones(len(target)) if weight is None else weight
    return sums(ranks(scores, target, exclude), ks, weight)
