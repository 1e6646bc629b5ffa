"""The kinds of matrices that Hydra's paper compares, each made of the tokens or learned as it is.

All but the quasiseparable one add what they mix to what they are given: y = scale * M x + x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigr_jax.errors import UserError
from bigr_jax.nn.partition import named
from bigr_jax.nn.shell import INNER, Shell, hidden
from bigr_jax.ops import matrix_mixers as ops
from bigr_jax.ops.attention import softmax_attention

Array = jax.Array

# Glorot, as PyTorch has it for any number of axes: first the outputs, then the inputs.
_GLOROT = nn.initializers.variance_scaling(1.0, "fan_avg", "normal", in_axis=1, out_axis=0)
_UNIFORM = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=1, out_axis=0)


class MatrixMixer(Shell):
    """What the kinds have in common.

    Attributes: beside those of `nn.shell`
      head_dim: by default 128, as published.
      qk_dim: d, channels of a head's queries and keys.
      length: L, the longest sequence. The scale is made of it, and the size of what is learned; a
        shorter sequence has its leading part.
      learned: the matrix is a parameter, or made of parameters, the same for every sequence; else
        it is made of the sequence itself.

    Source: Hydra (arXiv 2407.09941), sections 3 and 4.1, Table 2; parameters as officially
    initialised.
    """

    head_dim: int = 128
    qk_dim: int = 16
    length: int = 0
    learned: bool = False

    def mix(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns scale * M x + x, without the tokens of the padding."""
        return x + self.product(u, hidden(x, mask), mask)

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns scale * M x; a kind's own. u, x, mask: as of `mix`, x without the padding."""
        raise NotImplementedError

    def longest(self, length: int) -> int:
        """Returns L, see `longest`."""
        return longest(self, length)

    def pair(
        self, u: Array, mask: Array | None, act: Callable[[Array], Array] = lambda v: v
    ) -> tuple[Array, Array]:
        """Returns queries and keys, [batch or 1, length, heads, qk_dim]; makes their parameters.

        act: on those that are made of the tokens, after the convolution
        """
        length, shape = u.shape[1], (self.heads(u.shape[-1]), self.qk_dim)
        if not self.learned:
            query = act(self.projected(u, "query", shape, INNER, mask))
            return query, act(self.projected(u, "key", shape, INNER, mask))
        init, whole = named(_GLOROT, "position", *INNER), (self.longest(length), *shape)
        query, key = (self.param(name, init, whole) for name in ("query", "key"))
        return query[None, :length], key[None, :length]


class Dense(MatrixMixer):
    """A parameter for every entry of the matrix, as in MLP-Mixer."""

    learned: bool = True

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x / sqrt(L)."""
        length, size = x.shape[1], self.longest(x.shape[1])
        init = named(_GLOROT, "heads", "position", None)
        matrix = self.param("matrix", init, (x.shape[2], size, size))
        return ops.times(matrix[None, :, :length, :length] / math.sqrt(size), x)


class Toeplitz(MatrixMixer):
    """A convolution as long as the sequence: M_ij = w_{i-j}.

    Where it is made of the tokens, token k gives w_k and w_-k.

    Attributes: beside those of `MatrixMixer`
      rotated: index L of the 2L - 1 lags is lag 0, not L - 1, and index 0 the largest: what the
        official implementation does, for weights that were trained so.
    """

    rotated: bool = False

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x / (2 sqrt(L)), by Fourier transforms in float32."""
        (length, heads), size = x.shape[1:3], self.longest(x.shape[1])
        lags = self._learned(length, size, heads) if self.learned else self._made(u, heads, mask)
        return ops.toeplitz(lags * (0.5 / math.sqrt(size)), x)

    def _learned(self, length: int, size: int, heads: int) -> Array:
        init = named(_UNIFORM, "heads", "position")
        lags = self._order(self.param("lags", init, (heads, 2 * size - 1)))
        return lags[None, :, size - length : size + length - 1]

    def _made(self, u: Array, heads: int, mask: Array | None) -> Array:
        both = nn.silu(self.projected(u, "lags", (2, heads), (None, "heads"), mask))
        if mask is not None:
            # The lag that a token stands for is counted from the first token, not from padding.
            order = jnp.argsort(~mask, axis=1, stable=True)
            both = jnp.take_along_axis(both, order[..., None, None], axis=1)
        after, before = (jnp.moveaxis(both[:, :, i], 1, -1) for i in (0, 1))
        return self._order(jnp.concatenate([before[..., :0:-1], after], axis=-1))

    def _order(self, lags: Array) -> Array:
        return jnp.roll(lags, -1, axis=-1) if self.rotated else lags


class Fourier(MatrixMixer):
    """The real part of the Fourier matrix of the longest sequence, M_ij = cos(2 pi i j / L).

    Nothing of it is learned. FNet, which mixes the channels too, is `nn.mixers.others`.
    """

    learned: bool = True

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x / sqrt(L)."""
        size = self.longest(x.shape[1])
        return ops.times(ops.cosine_matrix(x.shape[1], size) / math.sqrt(size), x)


class Vandermonde(MatrixMixer):
    """Powers of what queries and keys stand for: M_ij = sum of cos(c q_i j) - cos(c k_j i).

    The learned one is no port: officially it multiplies by row sums alone, so that no tokens are
    mixed, and starts where its gradient is zero. Here it is the same matrix as of the tokens, made
    of learned queries and keys.
    """

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x / sqrt(2 L d)."""
        scale = 1 / math.sqrt(2 * self.longest(x.shape[1]) * self.qk_dim)
        return ops.times(ops.vandermonde_matrix(*self.pair(u, mask)) * scale, x)


class Cauchy(MatrixMixer):
    """M_ij = sum of 1 / (e^{q_i} + e^{k_j} + 2c), where c is learned, and 0 for learned q and k."""

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x / sqrt(L d)."""
        scale, offset = 1 / math.sqrt(self.longest(x.shape[1]) * self.qk_dim), 0.0
        if not self.learned:
            offset = 2 * self.param("offset", named(nn.initializers.constant(0.5)), ())
        return ops.times(ops.cauchy_matrix(*self.pair(u, mask), offset) * scale, x)


class LowRank(MatrixMixer):
    """M_ij = q_i k_j, in linear time; linear attention without a divisor."""

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x / sqrt(L d)."""
        query, key = self.pair(u, mask, nn.silu)
        scale = 1 / math.sqrt(self.longest(x.shape[1]) * self.qk_dim)
        return ops.low_rank(query * scale, key, x)


class Softmax(MatrixMixer):
    """M_ij = softmax over j of q_i k_j / sqrt(d): attention."""

    def product(self, u: Array, x: Array, mask: Array | None) -> Array:
        """Returns M x."""
        shape = (*x.shape[:3], self.qk_dim)
        query, key = (jnp.broadcast_to(v.astype(x.dtype), shape) for v in self.pair(u, mask))
        return softmax_attention(query, key, x, key_mask=mask)


def longest(module: Any, length: int) -> int:
    """Returns L of a module; raises UserError where it has none, and where what it has learned is
    for sequences shorter than `length`.
    """
    kind, size = type(module).__name__, module.length
    if size < 1:
        raise UserError(f"{kind}: length={size}, but it needs that of the longest sequence")
    if module.learned and length > size:
        raise UserError(f"{kind}: a sequence of {length} tokens; learned is length={size}")
    return size
