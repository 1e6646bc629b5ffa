"""A map cut into rows x columns of regions, and put together again.

Below: b batch, R regions, region r = row * columns + column, tokens of a region row major. A region
takes ceil(H / rows) x ceil(W / columns) tokens; what a map lacks is filled up at the bottom and at
the right, and `valid` tells which tokens are real. Two ways to cut:

    blocks   neighbours lie together: the windows of Swin and the regions of BiFormer; (rows, 1) and
             (1, columns) are stripes
    dilated  token (y, x) is of region (y mod rows, x mod columns), so that the tokens of each are
             spread evenly over the map: the grid attention of MaxViT (arXiv 2204.01697)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import UserError

Array = jax.Array


def split(x: Array, regions: Sequence[int], *, dilated: bool = False) -> Array:
    """Returns the tokens of the regions, [b, R, tokens, ...], of a map [b, H, W, ...].

    Missing tokens are zeros. Raises UserError where `regions` is not two numbers from 1 on.
    """
    rows, columns = check(regions)
    height, width = extent(x.shape[1:3], regions)
    missing = (rows * height - x.shape[1], columns * width - x.shape[2])
    rest = ((0, 0),) * (x.ndim - 3)
    if any(missing):
        x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), *rest))
    cut = (height, rows, width, columns) if dilated else (rows, height, columns, width)
    parts = x.reshape(len(x), *cut, *x.shape[3:])
    order = (2, 4, 1, 3) if dilated else (1, 3, 2, 4)
    parts = parts.transpose(0, *order, *range(5, parts.ndim))
    return parts.reshape(len(x), rows * columns, height * width, *x.shape[3:])


def join(
    parts: Array, size: Sequence[int], regions: Sequence[int], *, dilated: bool = False
) -> Array:
    """Returns the map [b, H, W, ...] of size (H, W) of regions [b, R, tokens, ...].

    What `split` has filled up is left out. Raises UserError where `regions` is not two numbers from
    1 on, ValueError where `parts` is not cut so.
    """
    rows, columns = check(regions)
    height, width = extent(size, regions)
    wanted = (rows * columns, height * width)
    if parts.shape[1:3] != wanted:
        raise ValueError(
            f"parts has the shape {parts.shape}; a map of {tuple(size)} in {rows} x {columns} "
            f"regions has {wanted[0]} of {wanted[1]} tokens"
        )
    x = parts.reshape(len(parts), rows, columns, height, width, *parts.shape[3:])
    order = (3, 1, 4, 2) if dilated else (1, 3, 2, 4)
    x = x.transpose(0, *order, *range(5, x.ndim))
    x = x.reshape(len(parts), rows * height, columns * width, *parts.shape[3:])
    return x[:, : size[0], : size[1]]


def valid(size: Sequence[int], regions: Sequence[int], *, dilated: bool = False) -> np.ndarray:
    """Returns bool [R, tokens]: which tokens of the regions of a map of size (H, W) are real."""
    rows, columns = check(regions)
    height, width = extent(size, regions)
    y = np.arange(rows * height) < size[0]
    x = np.arange(columns * width) < size[1]
    # [rows, height] and [columns, width]
    y, x = (
        line.reshape(-1, count).T if dilated else line.reshape(count, -1)
        for line, count in ((y, rows), (x, columns))
    )
    inside = y[:, None, :, None] & x[None, :, None, :]
    return inside.reshape(rows * columns, height * width)


def extent(size: Sequence[int], regions: Sequence[int]) -> tuple[int, int]:
    """Returns the rows and columns of tokens of a region of a map of size (H, W)."""
    rows, columns = check(regions)
    return -(-size[0] // rows), -(-size[1] // columns)


def check(regions: Sequence[int]) -> tuple[int, int]:
    """Returns rows and columns; raises UserError where they are not two whole numbers from 1 on."""
    if len(regions) != 2 or any(int(count) != count or count < 1 for count in regions):
        raise UserError(f"regions={tuple(regions)}; legal: (rows, columns), each 1 or more")
    return int(regions[0]), int(regions[1])
