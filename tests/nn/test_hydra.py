from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.nn import mixers
from bigr_jax.nn.hydra import Hydra
from bigr_jax.nn.short_conv import ShortConv

MODULE = Hydra(head_dim=4, state=5, groups=2, conv=5, chunk=4)
WIDTH = 8


@functools.partial(jax.jit, static_argnames="module")
def applied(params, u, mask=None, module=MODULE):
    return module.apply({"params": params}, u, mask)


@pytest.fixture(scope="module")
def params():
    made = nn.unbox(jax.jit(MODULE.init)(jax.random.key(0), jnp.zeros((1, 3, WIDTH))))["params"]
    # What begins as zero or one would hide a term that is missing.
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.3 * draw.normal(size=x.shape).astype(x.dtype), made)


def tokens(length, seed=2):
    return np.random.default_rng(seed).normal(size=(2, length, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_every_length_serves(params, length):
    y = applied(params, tokens(length))
    assert y.shape == (2, length, WIDTH) and np.isfinite(y).all()


def test_without_a_mask_padding_leaks(params):
    """What the official implementation lets in, 1.7 % of the output here: the bias of the
    convolution, and the state that it leaves.
    """
    u = tokens(7)
    wide = np.pad(u, ((0, 0), (0, 16), (0, 0)))
    alone = applied(params, u)
    leak = np.abs(applied(params, wide)[:, :7] - alone).max() / np.abs(alone).max()
    assert 0.01 < leak < 0.1


def test_the_directions_are_alike(params):
    """With their parameters exchanged and the taps reversed, the flipped input is mixed alike."""
    swapped = {
        name: dict(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()
    }
    swapped["BC"]["kernel"] = params["BC"]["kernel"][:, ::-1]
    swapped["dt"]["kernel"] = params["dt"]["kernel"][:, ::-1]
    swapped["conv_x"]["kernel"] = params["conv_x"]["kernel"][::-1]
    swapped["conv_BC"]["kernel"] = params["conv_BC"]["kernel"][::-1, ::-1]
    swapped["conv_BC"]["bias"] = params["conv_BC"]["bias"][::-1]
    u = tokens(9)
    found = applied(swapped, u[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(found, applied(params, u), rtol=0, atol=2e-6)


def test_the_published_size():
    spec = jax.ShapeDtypeStruct((1, 4, 768), jnp.float32)
    made = jax.eval_shape(Hydra().init, jax.random.key(0), spec)
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 3_825_224


def test_initial_steps_and_rates():
    spec = jnp.zeros((1, 2, 512))
    made = nn.unbox(jax.jit(Hydra(head_dim=2).init)(jax.random.key(3), spec))["params"]
    steps = jax.nn.softplus(made["dt_bias"])
    assert 0.001 <= steps.min() < 0.002 and 0.05 < steps.max() <= 0.1001
    assert not made["A_log"].any() and (made["D"] == 1).all()


def test_a_width_that_does_not_divide():
    with pytest.raises(UserError, match=r"expand \* width = 16 does not divide into heads of 64"):
        Hydra().init(jax.random.key(0), jnp.zeros((1, 2, 8)))


def test_an_even_convolution_has_no_centre():
    with pytest.raises(ValueError, match="size is 4"):
        ShortConv(4, (None,)).init(jax.random.key(0), jnp.zeros((1, 3, 2)))


def test_the_convolution_is_numpys():
    module, x = ShortConv(5, (None,)), tokens(6)
    made = module.init(jax.random.key(4), x)
    kernel, bias = (np.asarray(nn.unbox(made)["params"][name]) for name in ("kernel", "bias"))
    assert np.abs(kernel).max() <= 5**-0.5 and kernel.shape == (5, WIDTH)
    wanted = np.stack(
        [
            [np.convolve(row[:, c], kernel[::-1, c])[2:-2] + bias[c] for c in range(WIDTH)]
            for row in x
        ]
    )
    np.testing.assert_allclose(module.apply(made, x), wanted.swapaxes(1, 2), atol=1e-5)


def test_it_is_a_mixer():
    module = mixers.make("hydra", heads=4, dropout=0.1, dtype=jnp.bfloat16, name="mixer")
    assert isinstance(module, Hydra) and module.dropout == 0.1 and "hydra" not in mixers.CAUSAL
    spec = jax.ShapeDtypeStruct((1, 5, 32), jnp.float32)
    y, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), spec)
    assert y.dtype == jnp.bfloat16 and y.shape == spec.shape
