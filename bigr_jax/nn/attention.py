"""Multi-head attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.nn.linear import Linear
from bigr_jax.ops.attention import softmax_attention
from bigr_jax.ops.rope import rotate

Array = jax.Array


class SelfAttention(nn.Module):
    """Self-attention of any kind, without biases; a kind is a subclass with its own `attend`.

    Attributes:
      heads: number of heads, each of width / heads channels.
      dropout: rate on the result.
      dtype: of the matrix products.
      kernel_init: of the same.
    """

    heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernel_init: Any = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(
        self,
        u: Array,
        mask: Array | None = None,
        rope: Array | np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Returns the mixed tokens, `dtype` [batch, length, width].

        u: [batch, length, width], mask: bool [batch, length], True = may be attended to,
        rope: a table of `ops.rope`, [length, head_dim / 2, 2]; None: order is not seen.
        """
        width, heads = u.shape[-1], self.heads
        names = ("embed", None, "heads", "head_dim")
        how: dict[str, Any] = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        qkv = Linear((3, heads, width // heads), names, name="qkv", **how)(u)
        y = self.attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask, rope)
        y = Linear((width,), ("heads", "head_dim", "embed"), name="out", **how)(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        rope: Array | np.ndarray | None,
    ) -> Array:
        """Returns the mixed values, as value; query, key and value: [batch, length, heads,
        head_dim].
        """
        raise NotImplementedError


class Attention(SelfAttention):
    """Softmax attention, whose logits and softmax are float32.

    Attributes: beside those of `SelfAttention`
      causal: a token attends to itself and those before it, not to the whole sequence.
    """

    causal: bool = False

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        rope: Array | np.ndarray | None,
    ) -> Array:
        """Returns the softmax of the products of queries and keys times the values."""
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        return softmax_attention(query, key, value, key_mask=mask, causal=self.causal)
