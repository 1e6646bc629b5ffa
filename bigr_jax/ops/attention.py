"""Softmax attention."""

from __future__ import annotations

import jax

Array = jax.Array


def softmax_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_mask: Array | None = None,
    causal: bool = False,
) -> Array:
    """Returns softmax(query key^T / sqrt(head_dim)) value, with logits and softmax in float32.

    query: [batch, length, heads, head_dim], key and value: [batch, keys, heads, head_dim],
    key_mask: bool [batch, keys], True = may be attended to; where a sequence has no such key, its
    values are averaged; causal: token i attends to keys 0..i alone -> as query.
    Source: Vaswani et al. (arXiv 1706.03762), equation 1.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
