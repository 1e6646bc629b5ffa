"""The binary autoencoder: plans, sizes, codes, errors. Values are in the parity tests."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bigr_jax.errors import UserError
from bigr_jax.losses.reconstruction import absolute_error
from bigr_jax.models.binary_autoencoder import (
    LAST_KERNEL,
    PUBLISHED,
    BinaryAutoencoder,
    Block,
    Stack,
    decoder_plan,
    encoder_plan,
)

MODEL = BinaryAutoencoder(
    filters=4,
    multipliers=(1, 2),
    blocks=1,
    attention_resolutions=(4,),
    embedding=6,
    bits=5,
    image_size=8,
    channels=1,
    groups=2,
)


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(1, 8, 8, 1)), jnp.float32)


@pytest.fixture(scope="module")
def variables(image):
    made = nn.unbox(jax.eval_shape(lambda: MODEL.init(jax.random.key(0), image)))
    rng = np.random.default_rng(1)

    def drawn(leaf):
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map(drawn, made)


run = jax.jit(MODEL.apply)
call = jax.jit(MODEL.apply, static_argnames="method")


def counted(model):
    shape = (1, model.image_size, model.image_size, model.channels)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize(
    ("name", "params", "blocks", "grid"),
    [
        ("B-AE-d24", 63_033_755, (22, 23), 16),
        ("B-AE-d32", 63_037_859, (22, 23), 16),
        ("B-AE-d32-512", 58_831_267, (20, 21), 32),
    ],
)
def test_published_sizes(name, params, blocks, grid):
    model = PUBLISHED[name]
    assert (len(encoder_plan(model)), len(decoder_plan(model))) == blocks
    assert (model.factor, model.grid) == (16, grid)
    assert counted(model) == params


def test_attention_lies_where_it_is_asked_for():
    names = [b.name for b in encoder_plan(PUBLISHED["B-AE-d24"]) if b.kind == "attention"]
    assert names == ["level_4_attention_0", "level_4_attention_1", "middle_attention"]
    names = [b.name for b in decoder_plan(PUBLISHED["B-AE-d32-512"]) if b.kind == "attention"]
    assert names == ["middle_attention"]


def test_decoder_multiplier_and_first_norm():
    model = PUBLISHED["B-AE-d24"].clone(gen_mul=1.5, norm_first=False)
    plan = decoder_plan(model)
    assert plan[0].kind == "conv"
    assert sum(block.name.startswith("level_0_block") for block in plan) == 3


def test_shapes_and_deterministic_codes(variables, image):
    recon, codes, probabilities = run(variables, image)
    assert recon.shape == image.shape and recon.dtype == jnp.float32
    assert codes.shape == probabilities.shape == (1, 4, 4, 5)
    np.testing.assert_array_equal(codes, np.asarray(probabilities) > 0.5)
    again = run(variables, image)
    for one, other in zip((recon, codes, probabilities), again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_drawn_codes_follow_the_key_and_the_probabilities(variables, image):
    @jax.jit
    def draws(keys):
        logits = MODEL.apply(variables, image, method="encode")
        many = jax.vmap(lambda key: MODEL.apply(variables, logits, key, method="quantize")[0])
        return many(keys), nn.sigmoid(logits)

    codes, p = draws(jax.random.split(jax.random.key(0), 4096))
    assert set(np.unique(codes)) == {0.0, 1.0}
    # Five standard errors of 4096 draws are at most 0.04.
    np.testing.assert_allclose(codes.mean(0), p, atol=0.04)


def test_parts_make_the_whole(variables, image):
    recon, codes, probabilities = run(variables, image)
    logits = call(variables, image, method="encode")
    np.testing.assert_allclose(nn.sigmoid(logits), probabilities, atol=1e-6)
    np.testing.assert_allclose(call(variables, codes, method="decode"), recon, atol=1e-5)


def test_every_parameter_learns(variables, image):
    @jax.jit
    @jax.grad
    def gradient(variables):
        recon, _, _ = MODEL.apply(variables, image, jax.random.key(1))
        return absolute_error(recon, image).mean()

    gradients = flatten_dict(gradient(variables))
    # A constant added to every key shifts all logits of a query alike, so softmax undoes it.
    still = {path[-2:] for path, leaf in gradients.items() if np.abs(leaf).max() < 1e-6}
    assert still <= {("k", "bias")}
    assert LAST_KERNEL in gradients


def test_remat_changes_nothing(variables):
    stack = Stack((Block("res", "middle_block_0", 8), Block("attention", "middle_attention", 8)), 2)
    params = {"params": {b.name: variables["params"]["decoder"][b.name] for b in stack.plan}}
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 8)).astype(np.float32)
    results = [
        jax.jit(jax.grad(lambda p, s=s: jnp.square(s.apply(p, x)).mean()))(params)
        for s in (stack, stack.clone(remat=True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *results)


def test_low_precision(variables, image):
    low = jax.jit(MODEL.clone(dtype=jnp.bfloat16).apply)
    recon, codes, probabilities = low(variables, image)
    assert recon.dtype == codes.dtype == probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities, run(variables, image)[2], atol=0.1)


@pytest.mark.parametrize("size", [9, 10])
def test_sizes_that_cannot_be_halved_are_refused(size):
    model = MODEL.clone(image_size=size, multipliers=(1, 1, 1))
    with pytest.raises(UserError, match=rf"image_size={size} is not divisible by 4"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_arrays_of_other_shapes_are_refused(variables):
    with pytest.raises(ValueError, match=r"\(1, 7, 8, 1\) must be .* divisible by 2"):
        MODEL.apply(variables, jnp.zeros((1, 7, 8, 1)))
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 3\) must be \[batch, height, width, 1\]"):
        MODEL.apply(variables, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"must be \[batch, h, w, 5\]"):
        MODEL.apply(variables, jnp.zeros((1, 4, 4, 6)), method="decode")
