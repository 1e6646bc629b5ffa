"""The two sources of random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.generate.draws import KeyDraws, RecordedDraws

SHAPE = (2, 50, 4)


def everything(draws):
    """All kinds of draws, for two iterations and steps, by name."""
    found = {"order": draws.order()}
    for i in range(2):
        found |= {f"gumbel{i}": draws.gumbel(i), f"bits{i}": draws.bits(i)}
        found |= {f"denoise{i}{step}": draws.denoise(i, step) for step in range(2)}
    return found


def test_draws_of_a_key():
    draws = everything(KeyDraws(jax.random.key(0), SHAPE))
    for name, array in draws.items():
        assert array.shape == (SHAPE[:2] if name[:5] in ("order", "gumbe") else SHAPE)
        if not name.startswith("gumbel"):
            assert (array >= 0).all() and (array < 1).all()
    flat = [np.asarray(array).ravel()[:100] for array in draws.values()]
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 0.45


def test_draws_of_a_key_repeat_also_where_traced():
    draws = KeyDraws(jax.random.key(0), SHAPE)
    again = jax.jit(lambda key, i: KeyDraws(key, SHAPE).denoise(i, i))(jax.random.key(0), 1)
    np.testing.assert_array_equal(again, draws.denoise(1, 1))
    other = KeyDraws(jax.random.key(1), SHAPE)
    assert not np.array_equal(other.bits(0), draws.bits(0))


def test_recorded_draws():
    rng = np.random.default_rng(0)
    uniforms, gumbels, bits = (
        jnp.asarray(rng.random(s)) for s in ((2, 3, *SHAPE), (2, *SHAPE[:2]), (2, *SHAPE))
    )
    draws = RecordedDraws(uniforms, gumbels, bits)
    assert draws.shape == SHAPE
    np.testing.assert_array_equal(draws.denoise(1, 2), uniforms[1, 2])
    np.testing.assert_array_equal(jax.jit(draws.gumbel)(1), gumbels[1])
    np.testing.assert_array_equal(draws.bits(0), bits[0])
    with pytest.raises(ValueError, match="order_uniforms"):
        draws.order()
    assert RecordedDraws(uniforms, gumbels, bits, gumbels[0]).order() is not None
