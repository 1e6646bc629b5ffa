"""Encoders with any mixer: published sizes, padding, and the form of their layers."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.models.encoder import Encoder, MaskedModel, PatchClassifier

TINY = {"head_dim": 8, "state": 4, "chunk": 4}


def count(net: nn.Module, *inputs: Any) -> int:
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(shapes)))


@pytest.mark.parametrize(("depth", "wanted"), [(23, 112_086_712), (12, None), (24, None)])
def test_published_sizes_of_the_masked_model(depth: int, wanted: int | None) -> None:
    encoder = Encoder(depth, heads=12, norm_first=False)
    net = MaskedModel(30522, 768, encoder, types=2)
    found = count(net, jnp.zeros((1, 8), jnp.int32))
    layer = 3_825_224 + 2 * 768
    assert found == (wanted or 112_086_712 + (depth - 23) * layer)


def test_published_size_of_bert() -> None:
    encoder = Encoder(12, "attention", heads=12, hidden=3072, norm_first=False)
    net = MaskedModel(30522, 768, encoder, types=2, positions=512)
    # BERT-base has 109.5 M with its pooler (0.6 M); our attention has no biases (36,864).
    layer = 12 * 768**2 + 3072 + 768 + 4 * 768
    head = 768**2 + 768 + 2 * 768 + 30528
    wanted = (30528 + 2 + 512) * 768 + 2 * 768 + 12 * layer + head
    assert count(net, jnp.zeros((1, 8), jnp.int32)) == wanted


def test_published_size_of_the_image_classifier() -> None:
    net = PatchClassifier(1000, 768, 16, Encoder(24, heads=12))
    found = count(net, jnp.zeros((1, 224, 224, 3)))
    assert abs(found / 93.2e6 - 1) < 0.005


@pytest.fixture(scope="module")
def masked() -> tuple[Any, Any]:
    encoder = Encoder(2, "hydra", TINY, heads=2, norm_first=False)
    net = MaskedModel(13, 16, encoder, types=2, positions=12)
    variables = jax.jit(net.init)(jax.random.key(1), jnp.zeros((1, 3), jnp.int32))
    return jax.jit(net.apply), variables


def test_padding_changes_no_logit_of_a_token(masked: Any) -> None:
    apply, variables = masked
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 13, (2, 11))
    alone = apply(variables, tokens[:, :6])
    assert alone.shape == (2, 6, 16) and alone.dtype == jnp.float32
    mask = np.arange(11)[None] < np.full((2, 1), 6)
    one = apply(variables, tokens, mask)[:, :6]
    other = apply(variables, np.where(mask, tokens, 5), mask)[:, :6]
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, alone, atol=1e-6)


def test_types_and_positions_are_added(masked: Any) -> None:
    apply, variables = masked
    tokens = jnp.zeros((1, 5), jnp.int32)
    first, second = (apply(variables, tokens, None, tokens + kind) for kind in (0, 1))
    np.testing.assert_allclose(first, apply(variables, tokens), atol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    with pytest.raises(ValueError, match="13 tokens, positions are learned for 12"):
        apply(variables, jnp.zeros((1, 13), jnp.int32))


@pytest.mark.parametrize("norm_first", [True, False])
def test_norms_stand_where_they_should(norm_first: bool) -> None:
    encoder = Encoder(2, "hydra", TINY, hidden=8, norm_first=norm_first)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 16)), jnp.float32)
    variables = nn.unbox(jax.jit(encoder.init)(jax.random.key(0), x))
    # With all branches silent a layer passes on what it got, or the norm of that.
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * ("norm" in jax.tree_util.keystr(path)), variables
    )
    assert ("norm" in variables["params"]) == norm_first
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    np.testing.assert_allclose(jax.jit(encoder.apply)(silent, x), wanted, atol=2e-4)
    layers = variables["params"]["layers"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(layers)} == {2}


def test_branches_of_the_last_layer_are_left_out_at_its_rate() -> None:
    encoder = Encoder(2, "attention", heads=2, drop_path=0.5)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(64, 3, 8)), jnp.float32)
    variables = nn.unbox(jax.jit(encoder.init)(jax.random.key(0), x))
    run = jax.jit(encoder.apply, static_argnums=3)
    # The first of two layers has the rate 0, what stays of the last is doubled.
    scaled = [
        jax.tree_util.tree_map_with_path(
            lambda path, leaf, by=by: leaf.at[1].mul(by) if "out" in str(path) else leaf, variables
        )
        for by in (0.0, 2.0)
    ]
    without, doubled = (run(each, x, None, True) for each in scaled)
    apply = jax.jit(lambda key: encoder.apply(variables, x, None, False, rngs={"dropout": key}))
    found = apply(jax.random.key(3))
    left_out = np.abs(found - without).max((1, 2)) < 1e-6
    np.testing.assert_allclose(found[~left_out], doubled[~left_out], atol=1e-5)
    assert 16 < left_out.sum() < 48
    with pytest.raises(UserError, match=r"drop_path=1\.0 must be at least 0 and less than 1"):
        encoder.clone(drop_path=1.0).init(jax.random.key(0), x)
    plain = encoder.clone(drop_path=0.0)
    np.testing.assert_array_equal(
        run(variables, x, None, True),
        jax.jit(plain.apply, static_argnums=3)(variables, x, None, True),
    )


def test_patches_are_read_row_by_row() -> None:
    net = PatchClassifier(3, 4, 2, Encoder(1, "hydra", {**TINY, "expand": 2}))
    images = jnp.arange(2 * 4 * 6.0).reshape(2, 4, 6, 1) / 48
    variables = nn.unbox(jax.jit(net.init)(jax.random.key(0), images))

    @jax.jit
    def inside(variables: Any) -> Any:
        seen = lambda module, _: module.name == "embed"  # noqa: E731
        return net.apply(variables, images, capture_intermediates=seen)[1]

    state = inside(variables)
    kernel, bias = (variables["params"]["embed"][name] for name in ("kernel", "bias"))
    (embedded,) = state["intermediates"]["embed"]["__call__"]
    second = np.asarray(images)[:, :2, 2:4].reshape(2, 4) * 2 - 1
    np.testing.assert_allclose(embedded[:, 1], second @ kernel + bias, atol=1e-6)
    with pytest.raises(UserError, match="patches of 2 pixels do not cover images of 5 x 6"):
        net.apply(variables, jnp.zeros((1, 5, 6, 1)))


def test_mixers_that_see_maps_are_told_how_the_patches_lie() -> None:
    net = PatchClassifier(3, 8, 2, Encoder(1, "routing", {"regions": 2, "topk": 1}, heads=2))
    images = jax.ShapeDtypeStruct((1, 6, 8, 1), jnp.float32)
    params = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), images))["params"]
    # A convolution over rows and columns is there only where there is a map.
    assert params["encoder"]["layers"]["mixer"]["local"]["kernel"].shape == (1, 5, 5, 1, 8)
    words = MaskedModel(9, 8, Encoder(1, "routing", heads=2))
    tokens = jax.ShapeDtypeStruct((1, 6), jnp.int32)
    assert "local" not in str(jax.eval_shape(words.init, jax.random.key(0), tokens))
