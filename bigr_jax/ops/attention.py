"""Softmax attention."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def softmax_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_mask: Array | None = None,
    mask: Array | None = None,
    causal: bool = False,
) -> Array:
    """Returns softmax(query key^T / sqrt(head_dim)) value, with logits and softmax in float32.

    query: [batch, length, heads, head_dim], key: [batch, keys, heads, head_dim], value: [batch,
    keys, heads, channels], key_mask: bool [batch, keys], True = may be attended to; where a
    sequence has no such key, its values are averaged; mask: bool [batch, length, keys], the same
    for every query; causal: token i attends to keys 0..i alone
    -> [batch, length, heads, channels], as query.
    Source: Vaswani et al. (arXiv 1706.03762), equation 1.
    """
    seen = None if key_mask is None else key_mask[:, None, None, :]
    if mask is not None:
        seen = mask[:, None] if seen is None else seen & mask[:, None]
    scale, channels = 1 / math.sqrt(query.shape[-1]), value.shape[-1]
    most = max(query.shape[-1], channels)
    # One number of channels is wanted; zeros change neither the logits nor what is kept.
    query, key, value = (
        v if v.shape[-1] == most else jnp.pad(v, ((0, 0),) * 3 + ((0, most - v.shape[-1]),))
        for v in (query, key, value)
    )
    attend = jax.nn.dot_product_attention
    return attend(query, key, value, scale=scale, mask=seen, is_causal=causal)[..., :channels]
