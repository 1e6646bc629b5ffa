from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.nn import mixers
from bigr_jax.nn.block import Block


class Mean(nn.Module):
    """The average over the tokens that are no padding."""

    heads: int
    dropout: float
    dtype: type

    @nn.compact
    def __call__(self, u, mask, rope, deterministic):
        weight = np.ones(u.shape[:2]) if mask is None else mask
        mean = (u * weight[..., None]).sum(1, keepdims=True) / weight.sum(1)[:, None, None]
        return self.param("gain", nn.initializers.ones, ()) * mean + 0 * u


def test_unknown_mixer_is_refused_by_name():
    with pytest.raises(UserError, match=r"mixer='atention'.*did you mean 'attention'"):
        mixers.make("atention", heads=1, dropout=0.0, dtype=np.float32, name="mixer")


def test_a_new_mixer_serves_the_block(monkeypatch):
    monkeypatch.setitem(mixers.MIXERS, "mean", Mean)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    block = Block(heads=1, hidden=8, mixer="mean")
    variables = nn.unbox(block.init(jax.random.key(0), x))
    assert variables["params"]["mixer"].keys() == {"gain"}
    variables["params"]["mlp"]["down"]["kernel"] *= 0
    y = block.apply(variables, x)
    norm = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, x + norm.mean(1, keepdims=True), atol=1e-6)
