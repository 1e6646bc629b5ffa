"""Mixers without a shell: linear attention and FNet's Fourier transform."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.nn.attention import SelfAttention
from bigr_jax.ops.matrix_mixers import fourier, linear_attention
from bigr_jax.ops.rope import rotate

Array = jax.Array


class LinearAttention(SelfAttention):
    """Self-attention without a softmax, in time linear in the length: features elu + 1, normalised.

    Source: Katharopoulos et al. (arXiv 2006.16236), equations 5 to 7.
    """

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        rope: Array | np.ndarray | None,
    ) -> Array:
        """Returns the products of features times the values, by the keys first."""
        query, key = nn.elu(query) + 1, nn.elu(key) + 1
        turned = None if rope is None else (rotate(query, rope), rotate(key, rope))
        return linear_attention(query, key, value, key_mask=mask, turned=turned)


class FNet(nn.Module):
    """The real part of the Fourier transform over the sequence and the channels; no parameters.

    The transform is orthonormal, so that the result has the size of u; as published it is
    sqrt(length * width) times as large, and a norm follows. The tokens of a padded sequence are
    transformed as if they stood alone.

    Attributes:
      dropout: rate on the result.
      dtype: of the result; the transform is float32.

    Source: FNet (arXiv 2105.03824), equation 3.
    """

    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        u: Array,
        mask: Array | None = None,
        rope: Array | np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Returns the mixed tokens, `dtype` [batch, length, width]; zeros at the padding.

        u: [batch, length, width], mask: bool [batch, length], False = padding, rope: ignored.
        """
        del rope
        y = fourier(u, mask).astype(self.dtype)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)
