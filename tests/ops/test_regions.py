"""Regions of a map, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.ops import regions


def home(y: int, x: int, size: tuple[int, int], cut: tuple[int, int], dilated: bool) -> tuple:
    """The region of a token and its place there, by their definition."""
    h, w = (-(-length // count) for length, count in zip(size, cut, strict=True))
    if dilated:
        return y % cut[0] * cut[1] + x % cut[1], y // cut[0] * w + x // cut[1]
    return y // h * cut[1] + x // w, y % h * w + x % w


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize(
    ("size", "cut"),
    [((1, 1), (2, 3)), ((7, 10), (4, 4)), ((9, 5), (3, 2)), ((4, 6), (2, 3)), ((5, 6), (5, 1))],
)
def test_every_token_is_in_its_place(
    size: tuple[int, int], cut: tuple[int, int], dilated: bool
) -> None:
    x = np.random.default_rng(0).normal(size=(2, *size, 3, 2)).astype(np.float32)
    parts = np.asarray(regions.split(x, cut, dilated=dilated))
    shown = regions.valid(size, cut, dilated=dilated)
    assert parts.shape == (2, cut[0] * cut[1], shown.shape[1], 3, 2)
    wanted, real = np.zeros_like(parts), np.zeros_like(shown)
    for y in range(size[0]):
        for column in range(size[1]):
            at = home(y, column, size, cut, dilated)
            wanted[:, at[0], at[1]] = x[:, y, column]
            real[at] = True
    np.testing.assert_array_equal(parts, wanted)
    np.testing.assert_array_equal(shown, real)
    filled = np.where(shown[..., None, None], parts, 9.0)
    np.testing.assert_array_equal(regions.join(filled, size, cut, dilated=dilated), x)


def test_mistakes_are_named() -> None:
    for wrong in ((0, 7), (7,), (2.5, 1)):
        with pytest.raises(UserError, match=r"legal: \(rows, columns\), each 1 or more"):
            regions.split(np.zeros((1, 4, 4, 1)), wrong)
    with pytest.raises(ValueError, match=r"\(5, 4\) in 2 x 2 regions has 4 of 6 tokens"):
        regions.join(np.zeros((1, 4, 4, 1)), (5, 4), (2, 2))
