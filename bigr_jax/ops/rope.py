"""Rotary position embedding along a line and over a two-dimensional grid.

Channel pairs turn with the position, so that the product of a query and a key depends on their
offset alone; on a grid the row turns half of them and the column the others. Source: RoFormer
(arXiv 2104.09864), and its axial form in LlamaGen (arXiv 2406.06525).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def grid_table(
    grid: tuple[int, int],
    head_dim: int,
    *,
    prefix: int = 0,
    zero_prefix: bool = True,
    span: tuple[int, int] | None = None,
    base: float = 10000.0,
) -> np.ndarray:
    """Returns every channel pair's cosine and sine at `prefix` tokens and a raster of positions.

    With f_j = base^(-4j / head_dim), pair j turns by row * f_j and pair head_dim/4 + j by column *
    f_j. The prefix (a class token) has no place on the grid: `zero_prefix` gives it zeros, as the
    published models have. That is no rotation: it erases the token's query and key, so that it is
    seen with logit zero and itself attends uniformly. False gives it angle zero instead.

    span: the grid over which the positions spread; None: `grid` itself, whose rows and columns are
    counted from 0. With another they lie where the pixels of a picture of `grid` lie on one of
    `span`: a finer grid within the angles of a coarser one (position interpolation, arXiv
    2306.15595).
    -> float32 [prefix + rows * cols, head_dim / 2, 2]
    Raises ValueError where 4 does not divide `head_dim`. Source: BiGR (arXiv 2410.14672), code.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim={head_dim}: rotations in two axes need a multiple of 4")
    frequencies = base ** (-4.0 * np.arange(head_dim // 4) / head_dim)
    places = ((np.arange(n) + 0.5) * (s / n) - 0.5 for n, s in zip(grid, span or grid, strict=True))
    rows, cols = np.stack(np.meshgrid(*places, indexing="ij")).reshape(2, -1, 1)
    angles = np.concatenate([rows * frequencies, cols * frequencies], axis=-1)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    first = np.zeros((prefix, *table.shape[1:]))
    first[..., 0] = 0.0 if zero_prefix else 1.0
    return np.concatenate([first, table]).astype(np.float32)


def line_table(positions: Array | np.ndarray, head_dim: int, base: float = 10000.0) -> Array:
    """Returns every channel pair's cosine and sine: pair j turns by position * base^(-2j/head_dim).

    positions: int [...] -> float32 [..., head_dim / 2, 2]. Raises ValueError for an odd `head_dim`.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim}: rotations need a multiple of 2")
    frequencies = base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies.astype(np.float32)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotate(x: Array, table: Array | np.ndarray) -> Array:
    """Turns the channel pairs (2i, 2i+1): (a, b) -> (a cos - b sin, b cos + a sin).

    x: [batch, length, heads, head_dim], table: [length, head_dim / 2, 2], or with the batch in
    front -> as x; in float32.
    """
    cos, sin = jnp.moveaxis(jnp.repeat(jnp.asarray(table), 2, axis=-2), -1, 0)[..., None, :]
    # Shifts along the channels, because a TPU would pad a trailing axis of two to a full register.
    wide = x.astype(jnp.float32)
    even = np.arange(x.shape[-1]) % 2 == 0
    partner = jnp.where(even, -jnp.roll(wide, -1, axis=-1), jnp.roll(wide, 1, axis=-1))
    return (wide * cos + partner * sin).astype(x.dtype)
