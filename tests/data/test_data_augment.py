"""Augmentation: float64 oracles, the right distribution, uint8 kept exact, gradients, texts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.data import augment as aug
from bigr_jax.errors import UserError

rng = np.random.default_rng(0)
COLOUR = rng.random((64, 5, 7, 3)).astype(np.float32)
KEY = jax.random.key(0)


def test_to_float_is_the_quotient() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    converted = np.asarray(aug.to_float(jnp.asarray(levels)))
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted, levels.astype(np.float64) / 255, rtol=1e-7)


def test_flip_mirrors_about_half_of_the_images() -> None:
    flipped = np.asarray(aug.flip(KEY, jnp.asarray(COLOUR)))
    kept = (flipped == COLOUR).all((1, 2, 3))
    np.testing.assert_array_equal(flipped[~kept], COLOUR[~kept][:, :, ::-1])
    assert 16 < kept.sum() < 48


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_shift_is_a_window_of_the_padded_image(mode: Any) -> None:
    reach = 2
    moved = np.asarray(aug.shift(KEY, jnp.asarray(COLOUR), reach, mode))
    padded = np.pad(COLOUR, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode=mode)
    found = []
    for one, whole in zip(moved, padded, strict=True):
        corners = [(y, x) for y in range(5) for x in range(5)]
        same = [(y, x) for y, x in corners if (whole[y : y + 5, x : x + 7] == one).all()]
        assert len(same) == 1
        found.append(same[0])
    assert {y for y, _ in found} == {x for _, x in found} == set(range(5))


def warp_oracle(image: np.ndarray, angle: float, factor: float) -> np.ndarray:
    """Each pixel looks up where it comes from, and mixes the four pixels around."""
    image = image.astype(np.float64)
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            y, x = turn @ [y, x] / factor + [(height - 1) / 2, (width - 1) / 2]
            for i in (int(np.floor(y)), int(np.floor(y)) + 1):
                for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        out[row, column] += (1 - abs(y - i)) * (1 - abs(x - j)) * image[i, j]
    return out


@pytest.fixture(scope="module")
def warp():
    return jax.jit(aug.warp)


def test_warp_is_the_bilinear_rotation_and_magnification(warp) -> None:
    images = COLOUR[:6]
    angles = np.array([0.0, 0.3, -0.2, 0.05, 3.0, 0.0])
    factors = np.array([1.0, 1.0, 1.3, 0.7, 1.0, 2.0])
    warped = warp(jnp.asarray(images), jnp.float32(angles), jnp.float32(factors))
    for got, image, angle, factor in zip(warped, images, angles, factors, strict=True):
        np.testing.assert_allclose(got, warp_oracle(image, angle, factor), atol=1e-5)
    np.testing.assert_array_equal(warped[0], images[0])


def test_a_quarter_turn_is_anticlockwise() -> None:
    square = COLOUR[:2, :, :5]
    quarter = aug.warp(jnp.asarray(square), jnp.full(2, np.pi / 2), jnp.ones(2))
    # A pixel of the border may fall outside by a rounding error of the sine.
    expected = np.rot90(square, axes=(1, 2))
    np.testing.assert_allclose(quarter[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)


def test_warp_gradient_is_the_adjoint() -> None:
    images, weights = COLOUR[:6], rng.standard_normal((6, 5, 7, 3))
    angles, factors = jnp.full(6, 0.3), jnp.full(6, 1.2)

    def total(image: jax.Array) -> jax.Array:
        return jnp.sum(aug.warp(image, angles, factors) * weights.astype(np.float32))

    gradient = np.asarray(jax.grad(total)(jnp.asarray(images)))[0]
    expected = np.zeros_like(gradient, np.float64)
    for place in np.ndindex(5, 7):
        unit = np.zeros((5, 7, 1))
        unit[place] = 1
        response = warp_oracle(unit, 0.3, 1.2)[..., 0]
        expected[place] = np.einsum("hw,hwc->c", response, weights[0])
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "reach"), [("brightness", 0.3), ("contrast", 0.5)])
def test_brightness_and_contrast_are_affine_and_clipped(name: str, reach: float) -> None:
    changed = np.asarray(getattr(aug, name)(KEY, jnp.asarray(COLOUR), reach), np.float64)
    assert (changed.min(), changed.max()) == (0, 1)
    image = COLOUR.astype(np.float64)
    inside = (changed > 0) & (changed < 1)
    numbers = []
    for got, given, free in zip(changed, image, inside, strict=True):
        if name == "brightness":
            added = (got - given)[free]
            numbers.append(added[0])
            expected = given + added[0]
        else:
            mean = given.mean()
            far = free & (abs(given - mean) > 0.1)
            numbers.append(((got - mean) / (given - mean))[far][0] - 1)
            expected = mean + (1 + numbers[-1]) * (given - mean)
        np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=1e-5)
    assert reach * 0.8 < max(numbers) <= reach + 1e-6
    assert reach * 0.8 < -min(numbers) <= reach + 1e-6


SPECS = ["", "flip", "shift:2", "crop:1", "rotate:10", "zoom:0.2", "brightness:0.2", "contrast:.3"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_change_keeps_shape_type_and_range(spec: str) -> None:
    for image in (jnp.asarray(COLOUR), jnp.asarray((COLOUR * 255).astype(np.uint8))):
        out = aug.augment(KEY, image, spec)
        again, other = aug.augment(KEY, image, spec), aug.augment(jax.random.key(1), image, spec)
        assert (out.shape, out.dtype) == (image.shape, image.dtype)
        assert out.min() >= 0
        assert out.max() <= jnp.asarray(255 if image.dtype == jnp.uint8 else 1, out.dtype)
        np.testing.assert_array_equal(out, again)
        assert bool((out != other).any()) == bool(spec)


def test_the_recipe_of_imagenet_changes_almost_all_images_each_differently() -> None:
    image = jnp.asarray((COLOUR * 255).astype(np.uint8))
    run = jax.jit(lambda key: aug.augment(key, image, "resized_crop:.3,randaugment:2:9,erase:.5"))
    out, again, other = run(KEY), run(KEY), run(jax.random.key(1))
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(out, again)
    for one, two in ((out, image), (out, other)):
        assert (np.asarray(one) != np.asarray(two)).any((1, 2, 3)).mean() > 0.9


def test_bytes_survive_what_only_moves_pixels() -> None:
    levels = rng.permutation(256).astype(np.uint8).reshape(1, 16, 16, 1)
    moved = np.asarray(aug.augment(KEY, jnp.asarray(levels), "flip,crop:0,shift:0"))
    assert (moved == levels).all() or (moved == levels[:, :, ::-1]).all()


def test_changes_are_applied_in_order_with_keys_of_their_own() -> None:
    image = jnp.asarray(COLOUR)
    both = aug.augment(KEY, image, " shift:2, flip ")
    moved = aug.shift(jax.random.fold_in(KEY, 0), image, 2)
    np.testing.assert_array_equal(both, aug.flip(jax.random.fold_in(KEY, 1), moved))


def test_it_compiles_and_takes_a_single_pixel() -> None:
    one = jnp.full((1, 1, 1, 1), 7, jnp.uint8)
    compiled = jax.jit(aug.augment, static_argnums=2)(KEY, one, "flip,rotate:0,zoom:0,shift:0")
    np.testing.assert_array_equal(compiled, one)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("flop", r"data.augment='flop' is not known \(did you mean 'flip'\?\); legal: flip, shift"),
        ("flip:2", "data.augment: flip:2 takes no number; legal: flip"),
        (
            "shift",
            "data.augment: shift is not legal; expected shift: and an integer from 0 to 1024",
        ),
        ("shift:1.5", "data.augment: shift:1.5 is not legal"),
        ("shift:-1", "data.augment: shift:-1 is not legal"),
        ("flip,rotate:ten", "rotate:ten is not legal; expected rotate: and a number from 0 to 180"),
        ("contrast:nan", "contrast:nan is not legal"),
        ("brightness:1.2", "brightness:1.2 is not legal; .* from 0 to 1"),
        (
            "randaugment:2",
            "randaugment:2 is not legal; expected randaugment: and an integer from 0 to 16 : and a "
            "number from 0 to 10",
        ),
        ("randaugment:2:11", "randaugment:2:11 is not legal"),
        ("erase:0.2:0.3", "erase:0.2:0.3 is not legal"),
    ],
)
def test_items_that_are_not_legal_are_named(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        aug.augment(KEY, jnp.asarray(COLOUR), spec)
