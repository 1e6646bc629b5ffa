"""Feed-forward layers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.linear import Linear

Array = jax.Array


def swiglu_hidden(width: int, multiple: int = 256) -> int:
    """Returns Llama's hidden size of a SwiGLU: 8/3 of the width, rounded up to a multiple."""
    return -(-(8 * width // 3) // multiple) * multiple


class SwiGLU(nn.Module):
    """The gated feed-forward layer down(silu(gate x) * up x), without biases.

    x: [batch, length, width] -> `dtype` [batch, length, width].
    Source: Shazeer (arXiv 2002.05202), equation 6.

    Attributes:
      hidden: features between the products; `swiglu_hidden` gives Llama's choice.
      dropout: rate on the result.
      dtype: of the matrix products.
    """

    hidden: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        names = ("embed", "mlp")
        gate = Linear((self.hidden,), names, dtype=self.dtype, name="gate")(x)
        up = Linear((self.hidden,), names, dtype=self.dtype, name="up")(x)
        y = Linear((x.shape[-1],), names[::-1], dtype=self.dtype, name="down")(nn.silu(gate) * up)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)


class GeluMLP(nn.Module):
    """The feed-forward layer down(gelu(up x)), with biases, as of BERT and ViT.

    x: [batch, length, width] -> `dtype` [batch, length, width].

    Attributes:
      hidden: features between the products.
      dropout: rate on the result.
      dtype: of the matrix products.
    """

    hidden: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        names = ("embed", "mlp")
        up = Linear((self.hidden,), names, True, dtype=self.dtype, name="up")(x)
        y = nn.gelu(up, approximate=False)
        y = Linear((x.shape[-1],), names[::-1], True, dtype=self.dtype, name="down")(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)
