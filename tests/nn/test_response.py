"""Layers that answer to hyper-parameters, against NumPy and a loop over examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.nn.response import HyperConv, HyperDense

KEY = jax.random.key(0)
TUNED = 3


def made(layer, x, gates=0.5):
    h = jnp.asarray(np.random.default_rng(1).standard_normal((len(x), TUNED)), jnp.float32)
    params = nn.unbox(layer.init(KEY, x, h))["params"]
    noise = np.random.default_rng(2).standard_normal(params["gates"].shape) * gates
    return {**params, "gates": jnp.asarray(noise, jnp.float32), "scale": jnp.float32(1.3)}, h


def numbers(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def convolved(x, kernel, stride, around):
    x = np.pad(x.astype("f8"), ((0, 0), (around,) * 2, (around,) * 2, (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bijc,ijco->bo", window, kernel.astype("f8"))
    return out


@pytest.mark.parametrize("shape", [(1, 4), (5, 4), (2, 7, 4)])
def test_a_linear_map_is_the_affine_form_of_every_example(shape):
    layer, x = HyperDense(6, TUNED), numbers(shape)
    params, h = made(layer, x)
    found = layer.apply({"params": params}, x, h)
    p = {name: np.asarray(leaf, "f8") for name, leaf in params.items()}
    for row, (one, own) in enumerate(zip(x, np.asarray(h, "f8"), strict=True)):
        weights, bias = np.einsum("n,nko->ko", own, p["gates"])
        # One matrix and one bias of this example: gates scale the outputs.
        kernel = 1.3 * p["kernel"] + p["response_kernel"] * weights
        wanted = one @ kernel + 1.3 * p["bias"] + bias * p["response_bias"]
        np.testing.assert_allclose(found[row], wanted, atol=2e-6)


@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 1, -1), (3, 2, 0), (5, 1, 2)])
def test_a_convolution_has_a_gate_for_every_channel_and_example(size, strides, padding):
    layer = HyperConv(4, TUNED, size=size, strides=strides, padding=padding)
    x = numbers((3, 5, 6, 2))
    params, h = made(layer, x)
    found = layer.apply({"params": params}, x, h)
    p = {name: np.asarray(leaf, "f8") for name, leaf in params.items()}
    around = size // 2 if padding < 0 else padding
    weights, bias = np.einsum("bn,nko->kbo", np.asarray(h, "f8"), p["gates"])[:, :, None, None]
    plain = convolved(x, p["kernel"], strides, around) + p["bias"]
    answer = convolved(x, p["response_kernel"], strides, around)
    wanted = 1.3 * plain + weights * answer + bias * p["response_bias"]
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    rows = [layer.apply({"params": params}, x[i : i + 1], h[i : i + 1])[0] for i in range(len(x))]
    np.testing.assert_allclose(found, np.stack(rows), atol=2e-6)


@pytest.mark.parametrize(("layer", "x"), [(HyperDense, (4, 3)), (HyperConv, (2, 4, 4, 3))])
def test_without_gates_or_hyperparameters_it_is_the_plain_map(layer, x):
    layer, plain, x = layer(5, TUNED), layer(5), numbers(x)
    params, h = made(layer, x)
    params["scale"] = jnp.float32(1)
    own = {name: params[name] for name in ("kernel", "bias")}
    wanted = plain.apply({"params": own}, x)
    still = {**params, "gates": jnp.zeros_like(params["gates"])}
    np.testing.assert_array_equal(layer.apply({"params": still}, x, h), wanted)
    np.testing.assert_array_equal(layer.apply({"params": params}, x, 0 * h), wanted)
    assert nn.unbox(plain.init(KEY, x))["params"].keys() == {"kernel", "bias"}


def test_every_row_needs_its_hyperparameters():
    layer, x = HyperDense(5, TUNED), numbers((4, 3))
    for h in (None, jnp.zeros(TUNED), jnp.zeros((4, 2))):
        with pytest.raises(ValueError, match="a row for each of 4 examples"):
            layer.init(KEY, x, h)


def ridge(features, targets, level):
    """The exact weights of least squares with a penalty exp(level), and their slope in it."""
    inverse = np.linalg.inv(features.T @ features + np.exp(level) * np.eye(features.shape[1]))
    best = inverse @ features.T @ targets
    return best, -np.exp(level) * inverse @ best


def test_it_learns_the_best_response_of_ridge_regression_and_its_slope():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 6))
    truth, level = rng.standard_normal(6), np.log(8.0)
    targets = features @ truth + 1.5 * rng.standard_normal(40)
    fresh = rng.standard_normal((60, 6))
    held = fresh @ truth + 1.5 * rng.standard_normal(60)
    layer = HyperDense(6, 1)
    # The layer makes weights out of a constant, by which a row's own level is answered with a row
    # of its own weights: the kernel's only input is 1.
    ones = jnp.ones((16, 1))

    def weights(params, h):
        return layer.apply({"params": params}, ones[: len(h)], h)

    gram, moment = (jnp.asarray(x / 40) for x in (features.T @ features, features.T @ targets))

    def cost(params, key, center):
        h = center + 0.3 * jax.random.normal(key, (16, 1))
        w = weights(params, h)
        fit = jnp.einsum("bi,ij,bj->b", w, gram, w) / 2 - w @ moment
        return (fit + jnp.exp(h[:, 0] + level) / 80 * (w**2).sum(1)).mean()

    def fitted(params, center, steps, seed):
        def body(params, key):
            grads = jax.grad(cost)(params, key, center)
            return jax.tree.map(lambda p, g: p - 0.2 * g, params, grads), None

        keys = jax.random.split(jax.random.key(seed), steps)
        return jax.lax.scan(body, params, keys)[0]

    fitted = jax.jit(fitted, static_argnums=2)
    params = nn.unbox(layer.init(KEY, ones, jnp.zeros((16, 1))))["params"]
    params = fitted(params, 0.0, 4000, 1)
    exact, slope = ridge(features, targets, level)
    found, moved = jax.jvp(
        lambda h: weights(params, h)[0], (jnp.zeros((1, 1)),), (jnp.ones((1, 1)),)
    )
    assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)
    cosine = moved @ slope / np.linalg.norm(moved) / np.linalg.norm(slope)
    assert cosine > 0.95

    # Gradient descent on the level alone, through the weights' answer, in turn with the weights.
    def held_cost(center, params):
        return ((fresh @ weights(params, jnp.full((1, 1), center))[0] - held) ** 2).mean()

    descend = jax.jit(jax.grad(held_cost))
    grid = np.linspace(-3, 5, 801)
    errors = [((fresh @ ridge(features, targets, at)[0] - held) ** 2).mean() for at in grid]
    optimum, center = grid[int(np.argmin(errors))] - level, 0.0
    for turn in range(120):
        center -= 2.0 * float(descend(center, params))
        params = fitted(params, center, 100, 2 + turn)
    assert 0.5 < abs(optimum) < 3, "the optimum is far enough to be looked for"
    assert abs(center - optimum) < 0.2
