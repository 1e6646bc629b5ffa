"""The layer around a matrix that mixes tokens: projections, a short convolution, a norm, a gate."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.errors import UserError
from bigr_jax.nn.linear import FAN_IN, Linear
from bigr_jax.nn.norms import RMSNorm
from bigr_jax.nn.short_conv import ShortConv

Array = jax.Array

INNER = ("heads", "head_dim")


class Shell(nn.Module):
    """out(norm(mix(x)) * silu(gate)), where x = silu(conv(project(u))) is split into heads.

    A kind of matrix is a subclass whose `mix` multiplies x by the matrix; what the matrix is made
    of it takes from u by `projected`. Padding is zero where a convolution reads it, as is what lies
    beyond the ends of a sequence; its bias makes something of it again, which `mix` must not let
    the tokens see.

    Attributes:
      head_dim: P, channels of a head; it divides expand * width.
      expand: inner channels for each of the width.
      conv: taps of the convolution; an odd number where it is centred.
      bias: of the first and the last product.
      dropout: rate on the result.
      kernel_init: of the products.
      dtype: of the products; norm and gate are float32.

    Source: Hydra (arXiv 2407.09941), section 4, and its official implementation.
    """

    head_dim: int = 64
    expand: int = 2
    conv: int = 7
    bias: bool = False
    dropout: float = 0.0
    kernel_init: Any = FAN_IN
    dtype: DTypeLike = jnp.float32

    # No token sees one that comes after it, not even by the convolution.
    causal: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self,
        u: Array,
        mask: Array | None = None,
        rope: Array | np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Returns the mixed tokens, `dtype` [batch, length, width].

        u: [batch, length, width], mask: bool [batch, length], False = padding, rope: ignored.
        """
        del rope
        width, shape = u.shape[-1], (self.heads(u.shape[-1]), self.head_dim)
        gate = self.linear(u, "gate", shape, INNER)
        x = nn.silu(self.projected(u, "x", shape, INNER, mask))
        y = self.mix(u, x, mask)
        gate = jnp.tile(nn.silu(gate.astype(jnp.float32)), (1, 1, y.shape[2] // shape[0], 1))
        y = RMSNorm(name="norm")(y.reshape(*y.shape[:2], -1))
        y = (y * gate.reshape(y.shape)).astype(self.dtype)
        names = ("mlp", "embed")
        y = Linear((width,), names, self.bias, self.kernel_init, self.dtype, name="out")(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)

    def mix(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x; a subclass's own.

        u: [batch, length, width], the layer's input, x: [batch, length, heads, head_dim], mask:
        bool [batch, length] -> as x, or several such along the axis of heads, which share the gate
        """
        raise NotImplementedError

    def heads(self, width: int) -> int:
        """Returns H, the number of heads at a width; raises UserError where it is not whole."""
        inner = self.expand * width
        if inner % self.head_dim:
            raise UserError(
                f"{type(self).__name__}: expand * width = {inner} does not divide into heads of "
                f"{self.head_dim} channels"
            )
        return inner // self.head_dim

    def linear(
        self, u: Array, name: str, features: tuple[int, ...], names: tuple[str | None, ...]
    ) -> Array:
        """Returns u [batch, length, width] times a kernel, [batch, length, *features]."""
        names = ("embed", *names)
        return Linear(features, names, self.bias, self.kernel_init, self.dtype, name=name)(u)

    def projected(
        self,
        u: Array,
        name: str,
        features: tuple[int, ...],
        names: tuple[str | None, ...],
        mask: Array | None,
    ) -> Array:
        """Returns the same after the convolution `conv_NAME`, before which padding is zero."""
        x = hidden(self.linear(u, name, features, names), mask)
        return ShortConv(self.conv, names, self.causal, name=f"conv_{name}")(x)


def hidden(x: Array, mask: Array | None) -> Array:
    """Returns x [batch, length, ...] with zeros at the padding."""
    if mask is None:
        return x
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, 0)
