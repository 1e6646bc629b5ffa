from __future__ import annotations

import jax
import numpy as np
import pytest

from bigr_jax.nn.mlp import SwiGLU, swiglu_hidden


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def oracle(x, gate, up, down):
    x, gate, up, down = (a.astype(np.float64) for a in (x, gate, up, down))
    return (x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)) @ down


@pytest.fixture(scope="module")
def weights():
    return draw(1, 5, 8), draw(2, 5, 8), draw(3, 8, 5)


def as_params(gate, up, down):
    kernels = {"gate": gate, "up": up, "down": down}
    return {"params": {name: {"kernel": kernel} for name, kernel in kernels.items()}}


@pytest.mark.parametrize(
    "width, hidden", [(64, 256), (768, 2048), (1024, 2816), (1280, 3584), (1536, 4096)]
)
def test_published_hidden_sizes(width, hidden):
    assert swiglu_hidden(width) == hidden


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 5)])
def test_matches_float64(weights, shape):
    x = draw(0, *shape)
    y = SwiGLU(8).apply(as_params(*weights), x)
    np.testing.assert_allclose(y, oracle(x, *weights), rtol=1e-5, atol=1e-5)


def test_gradients_match_differences_of_the_oracle(weights):
    x, weight = draw(0, 1, 2, 5), draw(4, 1, 2, 5)
    loss = lambda x, *w: (SwiGLU(8).apply(as_params(*w), x) * weight).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(x, *weights)
    for i, array in enumerate((x, *weights)):
        step, ends = draw(5 + i, *array.shape), []
        for e in (1e-6, -1e-6):
            moved = [a.astype(np.float64) for a in (x, *weights)]
            moved[i] = moved[i] + e * step
            ends.append((oracle(*moved) * weight).sum())
        slope = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose((gradients[i] * step).sum(), slope, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only(weights):
    layer, x, params = SwiGLU(8, dropout=0.25), draw(0, 40, 50, 5), as_params(*weights)
    plain = layer.apply(params, x)
    np.testing.assert_array_equal(plain, SwiGLU(8).apply(params, x))
    kept = layer.apply(params, x, False, rngs={"dropout": jax.random.key(0)})
    dropped = np.asarray(kept) == 0
    assert abs(dropped.mean() - 0.25) < 0.02
    np.testing.assert_allclose(kept[~dropped], np.asarray(plain)[~dropped] / 0.75, rtol=1e-5)
