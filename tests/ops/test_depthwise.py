from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.ops import depthwise
from bigr_jax.ops.depthwise import depthwise_conv


@pytest.mark.parametrize(
    ("size", "kernel"), [((4, 6), (3, 3)), ((1, 1), (5, 5)), ((3, 2), (5, 3)), ((2, 3), (1, 1))]
)
def test_values_and_gradients_are_those_of_the_convolution(size, kernel, monkeypatch):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, *size, 3)).astype(np.float32)
    w = draw.normal(size=(*kernel, 1, 3)).astype(np.float32)
    c = draw.normal(size=x.shape).astype(np.float32)

    def both(x, w):
        y, back = jax.vjp(depthwise_conv, x, w)
        return y, *back(jnp.asarray(c))

    found = jax.jit(both)(x, w)
    monkeypatch.setattr(depthwise, "platform", lambda: "tpu")
    wanted = jax.jit(lambda x, w: both(x, w))(x, w)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def test_the_sum_is_written_out():
    x, w = np.arange(12.0).reshape(1, 3, 4, 1), np.arange(9.0).reshape(3, 3, 1, 1)
    wanted = np.zeros((3, 4))
    for i, j, a, b in np.ndindex(3, 4, 3, 3):
        if 0 <= i + a - 1 < 3 and 0 <= j + b - 1 < 4:
            wanted[i, j] += w[a, b, 0, 0] * x[0, i + a - 1, j + b - 1, 0]
    y = depthwise_conv(jnp.float32(x), jnp.float32(w))
    np.testing.assert_allclose(y[0, :, :, 0], wanted, rtol=1e-6)


def test_an_even_side_has_no_centre():
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 4\) has an even side"):
        depthwise_conv(jnp.zeros((1, 3, 3, 4)), jnp.zeros((2, 3, 1, 4)))
