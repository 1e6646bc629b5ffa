"""Blending against a dense solve, and what it promises about the seam."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.blend import seamless

MASKS = {
    "inside": np.s_[2:5, 3:6],
    "at the left border": np.s_[1:6, :4],
    "in a corner": np.s_[4:, 5:],
    "one pixel": np.s_[3, 3],
    "all but one row": np.s_[1:],
}


def marked(where, shape=(7, 9)):
    mask = np.zeros(shape, bool)
    mask[where] = True
    return mask


def dense(drawn, image, mask):
    """The same equations as one full matrix, pixel by pixel, channel by channel, in float64."""
    height, width = mask.shape
    a, b = np.zeros((mask.size, mask.size)), np.zeros((mask.size, drawn.shape[-1]))
    f, g = image.astype(float), drawn.astype(float)
    for y in range(height):
        for x in range(width):
            p = y * width + x
            if not mask[y, x]:
                a[p, p], b[p] = 1.0, f[y, x]
                continue
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width:
                    a[p, p] += 1.0
                    a[p, v * width + u] -= 1.0
                    b[p] += g[y, x] - g[v, u]
    return np.clip(np.linalg.solve(a, b), 0, 255).reshape(drawn.shape)


def noise(seed, shape, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("where", MASKS.values(), ids=MASKS.keys())
def test_it_solves_the_equations(where, channels):
    mask, image = marked(where), noise(0, (7, 9, channels))
    drawn = noise(1, (7, 9, channels), 100, 140)
    found, exact = seamless(drawn, image, mask), dense(drawn, image, mask)
    assert found.dtype == np.uint8
    # Half a level is what rounding takes; more only where the solve itself were off.
    assert np.abs(found[mask] - exact[mask]).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(found[~mask], image[~mask])


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6))
def test_any_mask_solves_the_equations(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    image, drawn = noise(seed, (height, width, 2)), noise(seed + 1, (height, width, 2), 90, 160)
    found = seamless(drawn, image, mask)
    np.testing.assert_array_equal(found[~mask], image[~mask])
    if mask.all():
        np.testing.assert_array_equal(found, drawn)
    elif mask.any():
        assert np.abs(found - dense(drawn, image, mask)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("where", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("offset", [-31, 40])
def test_a_constant_offset_disappears(where, offset):
    image = noise(3, (7, 9, 3), 50, 200)
    drawn = (image.astype(int) + offset).astype(np.uint8)
    np.testing.assert_array_equal(seamless(drawn, image, marked(where)), image)


def test_nothing_and_everything_marked():
    image, drawn = noise(0, (4, 5, 1)), noise(1, (4, 5, 1))
    np.testing.assert_array_equal(seamless(drawn, image, np.zeros((4, 5), bool)), image)
    np.testing.assert_array_equal(seamless(drawn, image, np.ones((4, 5), bool)), drawn)


def test_several_drawings_are_blended_each_for_itself():
    image, drawn, mask = noise(0, (7, 9, 3)), noise(1, (2, 3, 7, 9, 3)), marked(MASKS["inside"])
    found = seamless(drawn, image, mask)
    assert found.shape == drawn.shape
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[index], seamless(drawn[index], image, mask))


def test_values_stay_in_range():
    image, drawn = np.full((5, 5, 1), 250, np.uint8), noise(0, (5, 5, 1))
    found = seamless(drawn, image, marked(np.s_[1:4, 1:4], (5, 5)))
    free = dense(drawn, image, marked(np.s_[1:4, 1:4], (5, 5)))
    assert free.max() == 255 and found.max() == 255
    assert np.abs(found - free).max() <= 0.5 + 1e-6


def test_inputs_are_left_alone():
    image, drawn, mask = noise(0, (7, 9, 1)), noise(1, (7, 9, 1)), marked(MASKS["inside"])
    before = image.copy(), drawn.copy(), mask.copy()
    seamless(drawn, image, mask)
    for x, y in zip(before, (image, drawn, mask), strict=True):
        np.testing.assert_array_equal(x, y)


def test_shapes_that_do_not_fit_are_named():
    image = noise(0, (4, 5, 1))
    with pytest.raises(ValueError, match=r"drawn \(4, 4, 1\), image \(4, 5, 1\), mask \(4, 5\)"):
        seamless(noise(0, (4, 4, 1)), image, np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match=r"mask \(5, 4\)"):
        seamless(image, image, np.zeros((5, 4), bool))
