"""Image fidelity."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.metrics.image import psnr


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_psnr(peak):
    x, y = peak * np.random.default_rng(0).uniform(size=(2, 3, 4, 5, 1))
    wanted = 20 * np.log10(peak) - 10 * np.log10(((x - y) ** 2).mean((1, 2, 3)))
    got = psnr(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), peak)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_equal_images_and_unequal_shapes():
    assert np.isposinf(psnr(jnp.ones((1, 2)), jnp.ones((1, 2)))).all()
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        psnr(jnp.ones((1, 2)), jnp.ones((1, 3)))
