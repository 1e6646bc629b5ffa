"""Random boxes: their shares, sides and places; magnified as by Pillow; noise where they erase."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigr_jax.data import boxes

KEY = jax.random.key(0)
HEIGHT, WIDTH = 11, 14


def test_a_box_is_magnified_as_by_pillow_alone() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((5, HEIGHT, WIDTH, 3)).astype(np.float32)
    given = [(0, 0, HEIGHT, WIDTH), (2, 3, 6, 8), (0, 5, 1, 9), (10, 13, 1, 1), (4, 0, 7, 5)]
    box = boxes.Box(*jnp.asarray(given, jnp.int32).T)
    found = jax.jit(boxes.magnify)(images, box)
    for image, (top, left, height, width), one in zip(images, given, found, strict=True):
        part = image[top : top + height, left : left + width]
        planes = [Image.fromarray(np.ascontiguousarray(part[..., c])) for c in range(3)]
        large = [p.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for p in planes]
        wanted = np.clip(np.stack([np.asarray(p) for p in large], -1), 0, 1)
        np.testing.assert_allclose(one, wanted, atol=2e-6)
    np.testing.assert_allclose(found[0], images[0], atol=1e-6)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Boxes of [0.08, 1] of squares of 224 pixels."""
    run = functools.partial(boxes.draw, count=4000, size=(224, 224), area=(0.08, 1.0), aspect=4 / 3)
    box, found = jax.jit(run)(KEY)
    return np.stack([np.asarray(side) for side in box], -1), np.asarray(found)


def test_boxes_lie_within_and_have_the_shares_and_sides_asked_for(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    box, found = drawn
    assert found.all()
    assert (box[:, :2] >= 0).all() and (box[:, :2] + box[:, 2:] <= 224).all()
    share, ratio = box[:, 2] * box[:, 3] / 224**2, box[:, 3] / box[:, 2]
    assert 0.075 < share.min() < 0.1 and share.max() > 0.95
    assert ratio.min() > 0.74 and ratio.max() < 1.36
    # Of small shares, which always fit, the ratio is log-uniform, and any place is as likely.
    small = share < 0.5
    np.testing.assert_allclose(np.log(ratio[small]).std(), np.log(4 / 3) / 3**0.5, rtol=0.05)
    np.testing.assert_allclose(np.histogram(share[small], 6, (0.08, 0.5))[0] / small.sum(), 1 / 6,
                               atol=0.03)  # fmt: skip
    free = (box[small, :2] + 0.5) / (224 - box[small, 2:] + 1)
    np.testing.assert_allclose(free.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(free.std(0), 12**-0.5, atol=0.02)


def test_a_whole_image_too_long_keeps_its_middle() -> None:
    image = jnp.asarray(np.random.default_rng(1).random((2, 4, 40, 1)), jnp.float32)
    # Of all of so long an image no box has a ratio that is allowed: it is 4 x 5 pixels.
    found = jax.jit(boxes.resized_crop, static_argnums=2)(KEY, image, 1.0)
    middle = boxes.Box(*(jnp.full(2, n) for n in (0, 17, 4, 5)))
    np.testing.assert_allclose(found, jax.jit(boxes.magnify)(image, middle), atol=1e-6)


def test_erasing_fills_boxes_with_noise() -> None:
    size, count, marked = 32, 600, -1.0
    erase = jax.jit(boxes.erase, static_argnums=2)
    image = jnp.full((count, size, size, 2), marked)
    found = np.asarray(erase(KEY, image, 0.25))
    filled = (found != marked).any(-1)
    np.testing.assert_array_equal(filled, (found != marked).all(-1))
    hit = filled.any((1, 2))
    assert 0.19 < hit.mean() < 0.31
    shares = []
    for one in filled[hit]:
        rows, columns = one.any(1).nonzero()[0], one.any(0).nonzero()[0]
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) * len(columns) == one.sum()
        shares.append(one.mean())
        assert 0.25 < len(rows) / len(columns) < 4
    assert 0.015 < min(shares) < 0.04 and 0.28 < max(shares) < 0.36
    noise = found[filled]
    assert noise.min() >= 0 and noise.max() <= 1
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.45, 0.22], atol=0.01)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.02
    np.testing.assert_array_equal(erase(KEY, image, 0.0), image)
