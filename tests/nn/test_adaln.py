from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from bigr_jax.nn.adaln import ModulationOffset, SharedModulation, modulate


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_shared_part_matches_float64():
    c, kernel, bias = draw(0, 2, 1, 5), draw(1, 5, 6, 5), draw(2, 6, 5)
    params = {"params": {"linear": {"kernel": kernel, "bias": bias}}}
    wide = c.astype(np.float64)
    wanted = np.einsum("bsd,dif->bsif", wide / (1 + np.exp(-wide)), kernel) + bias
    np.testing.assert_allclose(SharedModulation().apply(params, c), wanted, atol=1e-5)


def test_shared_part_starts_at_zero_but_learns():
    layer, c = SharedModulation(), draw(0, 3, 1, 4)
    variables = nn.unbox(layer.init(jax.random.key(0), c))
    value, gradient = jax.value_and_grad(lambda v: layer.apply(v, c).sum())(variables)
    assert value == 0
    silu = c.astype(np.float64) / (1 + np.exp(-c.astype(np.float64)))
    wanted = np.broadcast_to(silu.sum((0, 1))[:, None, None], (4, 6, 4))
    np.testing.assert_allclose(gradient["params"]["linear"]["kernel"], wanted, atol=1e-6)
    np.testing.assert_allclose(gradient["params"]["linear"]["bias"], 3.0)


def test_offset_is_added_and_starts_with_variance_one_over_width():
    shared = draw(0, 2, 1, 6, 400)
    variables = nn.unbox(ModulationOffset().init(jax.random.key(0), shared))
    offset = variables["params"]["offset"]
    assert offset.shape == (6, 400)
    assert abs(offset.std() * 20 - 1) < 0.1
    np.testing.assert_array_equal(ModulationOffset().apply(variables, shared), shared + offset)


def test_modulate():
    x, shift, scale = draw(0, 3), draw(1, 3), draw(2, 3)
    np.testing.assert_allclose(modulate(x, shift, scale), x + x * scale + shift, rtol=1e-6)
