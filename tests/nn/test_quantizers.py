"""The binary quantiser: logits in, codes, embedded codes out."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.nn.quantizers import BinaryQuantizer

QUANTIZER = BinaryQuantizer(bits=5, features=6)


class Whole(nn.Module):
    """All methods in a row, so that every parameter is made."""

    def setup(self):
        self.quantizer = BinaryQuantizer(5, 6)

    def __call__(self, features):
        return self.quantizer.embedded(self.quantizer.codes(self.quantizer.logits(features))[0])


@pytest.fixture(scope="module")
def variables():
    made = nn.unbox(Whole().init(jax.random.key(0), jnp.zeros((1, 2, 6))))
    return {"params": made["params"]["quantizer"]}


def test_logits_and_embedded_codes(variables):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 6)).astype(np.float32)
    proj, embed = variables["params"]["proj"], np.float64(variables["params"]["embed"]["kernel"])
    logits = QUANTIZER.apply(variables, features, method="logits")
    wanted = np.float64(features) @ np.float64(proj["kernel"]) + np.float64(proj["bias"])
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    codes = rng.integers(0, 2, (2, 3, 5)).astype(np.float32)
    wanted = np.zeros((2, 3, 6))
    for index in np.ndindex(2, 3):
        wanted[index] = embed[codes[index] == 1].sum(0)
    got = QUANTIZER.apply(variables, codes, method="embedded")
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_deterministic_codes_need_no_key_and_a_key_draws(variables):
    logits = jnp.tile(jnp.array([-2.0, -0.1, 0.1, 0.5, 2.0]), (4000, 1))

    def codes(*args):
        return QUANTIZER.apply(variables, logits, *args, method="codes")

    fixed, probabilities = codes()
    np.testing.assert_array_equal(fixed, logits > 0)
    drawn, same = codes(jax.random.key(0))
    np.testing.assert_array_equal(probabilities, same)
    np.testing.assert_allclose(probabilities[0], 1 / (1 + np.exp(-np.asarray(logits[0]))), 1e-6)
    np.testing.assert_allclose(drawn.mean(0), probabilities[0], atol=0.04)
    uniforms = jnp.full(logits.shape, 0.49)
    np.testing.assert_array_equal(codes(None, uniforms)[0], probabilities > 0.49)
