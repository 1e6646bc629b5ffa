"""LPIPS against float64 NumPy, on a VGG16 with few channels."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.losses.perceptual import perceptual, stand_in

GROUPS = [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]
WIDTHS = (4, 5, 6, 7, 8)
SHAPE = (2, 16, 32, 3)


@pytest.fixture(scope="module")
def state():
    rng, tensors, channels = np.random.default_rng(0), {}, 3
    for slice_, (group, width) in enumerate(zip(GROUPS, WIDTHS, strict=True)):
        for i in group:
            kernel = rng.normal(size=(width, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
            tensors[f"net.slice{slice_ + 1}.{i}.weight"] = kernel
            tensors[f"net.slice{slice_ + 1}.{i}.bias"] = 0.1 * rng.normal(size=width)
            channels = width
        tensors[f"lin{slice_}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1))
    tensors["scaling_layer.shift"] = np.zeros((1, 3, 1, 1))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@pytest.fixture(scope="module")
def run():
    """Distances of a batch of two and the gradient of their sum; one compiled program for all."""

    @jax.jit
    def distances_and_gradient(distance, x, y):
        def summed(x):
            values = distance(x, y)
            return values.sum(), values

        (_, values), gradient = jax.value_and_grad(summed, has_aux=True)(x)
        return values, gradient

    return distances_and_gradient


def features_oracle(state, x):
    x = (x - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
    taps = []
    for slice_, group in enumerate(GROUPS):
        if slice_:
            x = np.maximum(
                np.maximum(x[:, ::2, ::2], x[:, 1::2, ::2]),
                np.maximum(x[:, ::2, 1::2], x[:, 1::2, 1::2]),
            )
        for i in group:
            kernel = state[f"net.slice{slice_ + 1}.{i}.weight"].astype(np.float64)
            padded, y = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 0.0
            for row in range(3):
                for col in range(3):
                    window = padded[:, row : row + x.shape[1], col : col + x.shape[2]]
                    y = y + window @ kernel[:, :, row, col].T
            x = np.maximum(y + state[f"net.slice{slice_ + 1}.{i}.bias"], 0)
        taps.append(x)
    return taps


def oracle(state, x, y):
    total = 0.0
    pairs = zip(features_oracle(state, x), features_oracle(state, y), strict=True)
    for index, (a, b) in enumerate(pairs):
        unit = [f / (np.sqrt((f**2).sum(-1, keepdims=True)) + 1e-10) for f in (a, b)]
        weights = state[f"lin{index}.model.1.weight"].reshape(-1)
        total = total + ((unit[0] - unit[1]) ** 2 @ weights).mean((1, 2))
    return total


def test_distances_and_gradient(state, run):
    x, y, step = np.random.default_rng(1).uniform(size=(3, *SHAPE))
    values, gradient = run(perceptual("lpips", state), np.float32(x), np.float32(y))
    np.testing.assert_allclose(values, oracle(state, x, y), rtol=1e-5)
    # Small enough for almost no relu to switch between the two sides.
    size = 1e-7
    slope = oracle(state, x + size * step, y) - oracle(state, x - size * step, y)
    ours = (np.asarray(gradient, np.float64) * step).sum()
    np.testing.assert_allclose(ours, slope.sum() / (2 * size), rtol=1e-3)


def test_equal_images_are_at_no_distance_and_pull_nowhere(state, run):
    x = np.full(SHAPE, 0.3, np.float32)
    values, gradient = run(perceptual("lpips", state), x, x)
    np.testing.assert_allclose(values, [0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(gradient, np.zeros(SHAPE), atol=1e-6)


def test_dead_features_have_finite_gradients(state, run):
    dead = {k: -np.ones_like(v) if k.endswith("bias") else 0 * v for k, v in state.items()}
    x = np.full(SHAPE, 0.3, np.float32)
    _, gradient = run(perceptual("lpips", dead), x, 1 - x)
    np.testing.assert_array_equal(gradient, np.zeros(SHAPE))


def test_torchvision_names_are_known_too(state, run):
    renamed = {re.sub(r"^net\.slice\d", "features", name): v for name, v in state.items()}
    assert "features.28.bias" in renamed
    x, y = np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    results = [run(perceptual("lpips", weights), x, y)[0] for weights in (state, renamed)]
    assert (results[0] > 0).all()
    np.testing.assert_array_equal(*results)


def test_none_is_zero():
    np.testing.assert_array_equal(perceptual("none")(jnp.zeros((3, 2, 2, 1)), None), np.zeros(3))


def test_errors_name_what_is_wrong(state):
    with pytest.raises(UserError, match=r"perceptual='lpip' is not known \(did you mean 'lpips'"):
        perceptual("lpip")
    with pytest.raises(UserError, match="needs a weights file"):
        perceptual("lpips")(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))
    less = {k: v for k, v in state.items() if ".28." not in k and "lin2" not in k}
    with pytest.raises(UserError, match=r"3 missing: features.28.weight, .*28.bias, lin2.model"):
        perceptual("lpips", less)
    wrong = state | {"net.slice2.5.weight": np.zeros((5, 9, 3, 3))}
    with pytest.raises(UserError, match=r"5.weight is \(5, 9, 3, 3\), wanted \(5, 4, 3, 3\)"):
        perceptual("lpips", wrong)
    with pytest.raises(ValueError, match="at least 16 x 16"):
        perceptual("lpips", state)(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)))


def test_noise_stands_in_for_absent_weights_where_it_is_asked_to():
    distance = perceptual("lpips")
    images = jnp.zeros((2, 16, 16, 3))
    with stand_in():
        shape = jax.eval_shape(distance, images, images)
    assert (shape.shape, shape.dtype) == ((2,), jnp.float32)
    with pytest.raises(UserError, match="needs a weights file"):
        distance(images, images)
