"""Bi-level routing in sequences: against a float64 oracle, with a map, tokens in front, padding."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.nn import mixers

WIDTH, HEADS = 8, 2


@functools.cache
def mixer(grid, regions, topk):
    module = mixers.make("routing", heads=HEADS, dropout=0.0, dtype=jnp.float32, name="mixer",
                         grid=grid, regions=regions, topk=topk)  # fmt: skip
    module = module.clone(name=None)
    spec = jax.ShapeDtypeStruct((1, 12, WIDTH), jnp.float32)
    made = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), spec))["params"]
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.4, leaf.shape).astype(np.float32), made)
    return params, jax.jit(lambda u, mask=None: module.apply({"params": params}, u, mask))


def oracle(params, u, mask, grid, regions, topk):
    """One sequence, float64, token by token."""
    p = jax.tree.map(np.float64, params)
    query, key, value = np.moveaxis(np.tensordot(u, p["qkv"]["kernel"], 1), 1, 0)
    length = len(u)
    height, width = grid or (1, length)
    front = length - height * width
    cut = (regions, regions) if grid else (1, regions**2)
    y, x = np.divmod(np.arange(height * width), width)
    tall, wide = -(-height // cut[0]), -(-width // cut[1])
    region = np.full(length, -1)
    region[front:] = y // tall * cut[1] + x // wide
    count = cut[0] * cut[1]
    real = mask.astype(bool)

    def mean(part, r):
        own = real & (region == r)
        return part[own].mean(0).ravel() if own.any() else np.zeros(WIDTH)

    full = [r for r in range(count) if (real & (region == r)).any()]
    scores = {r: {s: mean(query, r) @ mean(key, s) for s in full} for r in full}
    out = np.zeros_like(value)
    for token in np.flatnonzero(real):
        seen = real.copy()
        if token >= front:
            own = scores[region[token]]
            best = sorted(own, key=own.get, reverse=True)[:topk]
            seen &= np.isin(region, best) | (np.arange(length) < front)
        logits = np.einsum("hd,khd->hk", query[token], key[seen]) * (WIDTH // HEADS) ** -0.5
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[token] = np.einsum("hk,khd->hd", weights / weights.sum(1, keepdims=True), value[seen])
    if grid:
        kernel = p["local"]["kernel"][:, :, 0].reshape(5, 5, HEADS, -1)
        flat = np.where(real[:, None, None], value, 0)[front:].reshape(height, width, HEADS, -1)
        near = np.zeros_like(flat) + p["local"]["bias"].reshape(HEADS, -1)
        for i, j, a, b in np.ndindex(height, width, 5, 5):
            if 0 <= i + a - 2 < height and 0 <= j + b - 2 < width:
                near[i, j] += kernel[a, b] * flat[i + a - 2, j + b - 2]
        out[front:] += near.reshape(-1, *out.shape[1:])
    return np.tensordot(out, p["out"]["kernel"], 2)


@pytest.mark.parametrize(
    ("length", "grid", "regions", "topk"),
    [
        (13, (3, 4), 2, 1),
        (16, (3, 4), 2, 2),
        (12, (3, 4), 4, 3),
        (11, None, 2, 2),
        (1, None, 2, 4),
        (2, (1, 1), 2, 1),
    ],
)
def test_values_are_those_of_the_oracle(length, grid, regions, topk):
    params, apply = mixer(grid, regions, topk)
    u = np.random.default_rng(2).normal(size=(2, length, WIDTH)).astype(np.float32)
    mask = np.ones((2, length), bool)
    mask[1, length - length // 3 :] = False
    if length > 12:
        mask[1, 0] = False
    shown = np.where(mask[..., None], u, 1e3)
    y = apply(shown, mask)
    for row in range(2):
        wanted = oracle(params, u[row].astype(np.float64), mask[row], grid, regions, topk)
        np.testing.assert_allclose(np.asarray(y[row])[mask[row]], wanted[mask[row]], atol=2e-5)
    np.testing.assert_allclose(apply(u)[0], y[0], atol=1e-5)


def test_a_map_that_the_sequence_does_not_hold_is_an_error():
    with pytest.raises(UserError, match=r"sequence of 11 tokens does not hold a map of \(3, 4\)"):
        mixer((3, 4), 2, 2)[1](jnp.zeros((1, 11, WIDTH)))
