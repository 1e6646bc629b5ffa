"""Pasting a drawn region into an image without a visible seam.

Source: Perez, Gangnet and Blake, "Poisson image editing", SIGGRAPH 2003, equations 7 and 9.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu


def seamless(drawn: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns `image` with the masked pixels replaced by the drawn ones, blended at the seam.

    Inside, the gradients are those of what was drawn; at the seam, the values are those of the
    image: what is added to the drawing is harmonic, and equals the difference of the two around it.
    Where the mask reaches the border of the image, nothing holds it there. A mask of everything
    has no seam, and gives what was drawn.

    drawn  uint8 [..., H, W, C], one or several for the same place
    image  uint8 [H, W, C]
    mask   bool [H, W], True = take from `drawn`
    Returns uint8 of the shape of `drawn`; outside the mask it is the image exactly. Raises
    ValueError for shapes that do not fit.
    """
    # Inside: sum over neighbours q of (u_p - u_q) = 0, u = image - drawn outside.
    if drawn.shape[-3:] != image.shape or mask.shape != image.shape[:2]:
        raise ValueError(f"drawn {drawn.shape}, image {image.shape}, mask {mask.shape} do not fit")
    out = np.where(mask[..., None], drawn, image)
    if not mask.any() or mask.all():
        return out
    inside, edges = mask.reshape(-1), _edges(mask)
    # [pixels, drawings * channels]: one factorisation serves all right-hand sides.
    difference = image.astype(np.float64) - drawn
    columns = np.moveaxis(difference.reshape(-1, mask.size, image.shape[-1]), 1, 0)
    columns = columns.reshape(mask.size, -1)
    matrix, number = _laplacian(edges, inside)
    right = np.zeros((inside.sum(), columns.shape[1]))
    seam = ~inside[edges.end]
    np.add.at(right, number[edges.start[seam]], columns[edges.end[seam]])
    added = _solve(matrix, right).reshape(len(right), -1, image.shape[-1])
    pixels = out.reshape(-1, mask.size, image.shape[-1])
    summed = pixels[:, inside] + np.moveaxis(added, 0, 1)
    pixels[:, inside] = np.round(np.clip(summed, 0.0, 255.0)).astype(np.uint8)
    return pixels.reshape(drawn.shape)


class _Edges(NamedTuple):
    """Pairs of neighbouring pixels, numbered in raster order, of which `start` is inside."""

    start: np.ndarray
    end: np.ndarray


def _edges(mask: np.ndarray) -> _Edges:
    index = np.arange(mask.size).reshape(mask.shape)
    one = np.concatenate([index[:, :-1].reshape(-1), index[:-1].reshape(-1)])
    other = np.concatenate([index[:, 1:].reshape(-1), index[1:].reshape(-1)])
    start, end = np.concatenate([one, other]), np.concatenate([other, one])
    inner = mask.reshape(-1)[start]
    return _Edges(start[inner], end[inner])


def _laplacian(edges: _Edges, inside: np.ndarray) -> tuple[csc_matrix, np.ndarray]:
    """The matrix over the pixels inside, and the number of a pixel among them."""
    number, count = np.cumsum(inside) - 1, int(inside.sum())
    degree = np.bincount(number[edges.start], minlength=count)
    both = inside[edges.end]
    rows = np.concatenate([np.arange(count), number[edges.start[both]]])
    cols = np.concatenate([np.arange(count), number[edges.end[both]]])
    values = np.concatenate([degree, np.full(both.sum(), -1.0)])
    return csc_matrix((values, (rows, cols)), shape=(count, count)), number


def _solve(matrix: csc_matrix, right: np.ndarray) -> np.ndarray:
    # Symmetric and positive definite: no pivoting, and the ordering that suits that.
    found = splu(
        matrix,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return found.solve(right)
