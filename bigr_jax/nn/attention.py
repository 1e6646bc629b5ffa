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


class Attention(nn.Module):
    """Self-attention without biases.

    Attributes:
      heads: number of heads, each of width / heads channels.
      dropout: rate on the result.
      dtype: of the matrix products; logits and softmax are float32.
      causal: a token attends to itself and those before it, not to the whole sequence.
      kernel_init: of the matrix products.
    """

    heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    causal: bool = False
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
        query, key, value = (qkv[:, :, i] for i in range(3))
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        y = softmax_attention(query, key, value, key_mask=mask, causal=self.causal)
        y = Linear((width,), ("heads", "head_dim", "embed"), name="out", **how)(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)
