"""The kinds of attention on maps against pairs of tokens that are written out."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.nn.map_attention import KINDS, make

HEADS, WIDTH = 2, 6


def pairs(kind, height, width):
    """bool [heads, tokens, tokens]: whom a token sees, in maps of regions 2, for either head."""
    y, x = np.divmod(np.arange(height * width), width)
    tall, wide = -(-height // 2), -(-width // 2)
    rows, columns = y // tall, x // wide
    same = {
        "windows": [(rows, columns)] * 2,
        "dilated": [(y % 2, x % 2)] * 2,
        "stripes": [(rows,), (columns,)],
        "dense": [()] * 2,
    }[kind]
    return np.stack(
        [
            np.all([part[:, None] == part for part in parts], axis=0)
            if parts
            else np.ones((y.size,) * 2, bool)
            for parts in same
        ]
    )


@functools.cache
def layer(kind, **options):
    module = make(kind, heads=HEADS, regions=2, topk=2, ratio=2, **options)
    spec = jax.ShapeDtypeStruct((1, 4, 4, WIDTH), jnp.float32)
    made = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), spec))["params"]
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.4, leaf.shape), made)
    return module, {"params": jax.tree.map(np.asarray, params)}


def projected(params, x):
    p = params["params"]
    qkv = np.tensordot(x, np.asarray(p["qkv"]["kernel"]), 1) + np.asarray(p["qkv"]["bias"])
    return [qkv[:, :, :, part].reshape(len(x), -1, HEADS, WIDTH // HEADS) for part in range(3)]


def finished(params, x, mixed, value):
    """The rest of the frame in float64: the convolution of the values, and the layer behind."""
    p, (height, width) = params["params"], x.shape[1:3]
    kernel, near = np.asarray(p["local"]["kernel"]), np.zeros(x.shape)
    flat = value.reshape(x.shape)
    for i, j in np.ndindex(height, width):
        for a, b in np.ndindex(5, 5):
            if 0 <= i + a - 2 < height and 0 <= j + b - 2 < width:
                near[:, i, j] += kernel[a, b, 0] * flat[:, i + a - 2, j + b - 2]
    y = mixed.reshape(x.shape) + near + np.asarray(p["local"]["bias"])
    return y @ np.asarray(p["out"]["kernel"]) + np.asarray(p["out"]["bias"])


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize("kind", ["windows", "dilated", "stripes", "dense"])
def test_who_sees_whom(kind, height, width):
    module, params = layer(kind)
    x = np.random.default_rng(2).normal(size=(2, height, width, WIDTH))
    query, key, value = projected(params, x)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) * WIDTH**-0.5
    weights = softmax(np.where(pairs(kind, height, width), logits, -np.inf))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
    wanted = finished(params, x, mixed, value)
    y = module.apply(jax.tree.map(jnp.float32, params), jnp.float32(x))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 3)])
def test_pooled_attention_sees_the_means_of_patches(height, width):
    module, params = layer("pooled")
    x = np.random.default_rng(3).normal(size=(2, height, width, WIDTH))
    query, key, value = projected(params, x)
    y, x_place = np.divmod(np.arange(height * width), width)
    patch = np.stack([y // 2, x_place // 2], axis=1)
    own = (patch[:, None] == np.unique(patch, axis=0)).all(-1).astype(float)
    means = [np.einsum("bkhd,kp->bphd", part, own / own.sum(0)) for part in (key, value)]
    weights = softmax(np.einsum("bqhd,bphd->bhqp", query, means[0]) * WIDTH**-0.5)
    mixed = np.einsum("bhqp,bphd->bqhd", weights, means[1])
    wanted = finished(params, x, mixed, value)
    found = module.apply(jax.tree.map(jnp.float32, params), jnp.float32(x))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_pools_of_regions_that_are_cut_off_at_the_border_see_real_tokens_alone():
    """Of a map of one token in four regions, three are empty."""
    x = np.random.default_rng(4).normal(size=(1, 1, 1, WIDTH)).astype(np.float32)
    for pool in ("mean", "max"):
        module, params = layer("routed")
        y = module.clone(pool=pool).apply(params, x)
        np.testing.assert_allclose(y, module.apply(params, x), rtol=0, atol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"attention='window'.*windows"):
        make("window", heads=2)
    with pytest.raises(UserError, match="width=5 is not a multiple of heads=2"):
        make("dense", heads=2).init(jax.random.key(0), jnp.zeros((1, 2, 2, 5)))
    with pytest.raises(UserError, match="two heads or more"):
        make("stripes", heads=1).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))
    with pytest.raises(UserError, match="topk=5 of 4 regions; legal: 1 to 4"):
        make("routed", heads=1, regions=2, topk=5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))
    with pytest.raises(UserError, match="pool='sum'"):
        made = make("routed", heads=1, regions=2, topk=1).clone(pool="sum")
        made.init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))
    assert set(KINDS) == {"routed", "windows", "dilated", "stripes", "pooled", "dense"}
