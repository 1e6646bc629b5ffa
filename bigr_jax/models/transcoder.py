"""The denoiser of the binary transcoder: a small MLP applied to every token on its own.

Source: BiGR (arXiv 2410.14672, section 3.2); its blocks are those of MAR's diffusion head
(arXiv 2406.11838).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.nn.linear import Linear

Array = jax.Array

TIME_FEATURES = 256
_NORMAL, _ZEROS = nn.initializers.normal(0.02), nn.initializers.zeros


def time_features(t: Array, size: int = TIME_FEATURES) -> Array:
    """Returns the sinusoids [cos(t f_i), sin(t f_i)], f_i = 10000^(-i / half), of integer times.

    t: any shape -> float32 [*t.shape, size]; `size` is even.
    """
    half = size // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angles = jnp.asarray(t, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _modulated_norm(h: Array, shift: Array, scale: Array) -> Array:
    """LayerNorm (eps 1e-6, no affine) in float32, then the token's own shift and scale."""
    h = h.astype(jnp.float32)
    h = h - h.mean(axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(axis=-1, keepdims=True) + 1e-6)
    return h * (1.0 + scale) + shift


class DenoiserBlock(nn.Module):
    """One residual block, h + gate * MLP(LN(h) * (1 + scale) + shift), in the form that scans.

    h: float32 [..., width], modulator: [..., width] -> (float32 [..., width], None). shift, scale
    and gate are linear in the modulator and start at zero, so that a new block is the identity.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Array, modulator: Array) -> tuple[Array, None]:
        def linear(features: int, names: tuple[str, str], init: Any, name: str) -> Linear:
            return Linear(
                (features,), names, bias=True, kernel_init=init, dtype=self.dtype, name=name
            )

        width = self.width
        modulation = linear(3 * width, ("embed", "modulation"), _ZEROS, "modulation")(modulator)
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        y = _modulated_norm(h, shift, scale)
        y = linear(width, ("embed", "mlp"), _NORMAL, "mlp_in")(y)
        y = linear(width, ("mlp", "embed"), _NORMAL, "mlp_out")(nn.silu(y))
        return h + gate * y, None


class Denoiser(nn.Module):
    """Predicts the K bits of a token from a noisy version, the time and the token's hidden vector.

    x_t [..., K] in {0, 1}; t int, broadcastable to [...], counted from 0 as the network sees it
    (one less than in the diffusion); condition [..., D] -> float32 logits [..., K], at first all 0.
    `project` and `step` are the two halves of a call: over the denoising steps of one hidden vector
    only `step` need be repeated.

    Attributes:
      bits: K, bits per token.
      width: features of the hidden layers.
      blocks: residual blocks.
      dtype: of the matrix products; residual stream, norms and logits are float32.

    Source: BiGR, "Binary transcoder", and the official implementation.
    """

    bits: int
    width: int
    blocks: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def linear(
            features: int, names: tuple[str, str], init: Any, dtype: DTypeLike = self.dtype
        ) -> Linear:
            return Linear((features,), names, bias=True, kernel_init=init, dtype=dtype)

        width = self.width
        self.bits_in = linear(width, ("codes", "embed"), _NORMAL)
        self.condition_in = linear(width, ("embed", "mlp"), _NORMAL)
        self.time_in = linear(width, ("time", "mlp"), _NORMAL)
        self.time_out = linear(width, ("mlp", "embed"), _NORMAL)
        # Unrolled, the slices of the stacked weights are invariants that leave the sampling loop.
        self.layers = nn.scan(
            DenoiserBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.blocks,
            unroll=self.blocks,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(width, self.dtype)
        self.out_modulation = linear(2 * width, ("embed", "modulation"), _ZEROS)
        self.out = linear(self.bits, ("embed", "codes"), _ZEROS, jnp.float32)

    def __call__(self, x_t: Array, t: Array, condition: Array) -> Array:
        """Returns the logits [..., K]; see the class."""
        return self.step(x_t, t, self.project(condition))

    def project(self, condition: Array) -> Array:
        """Returns the part [..., width] of the modulator that no step changes, from [..., D]."""
        return self.condition_in(condition)

    def step(self, x_t: Array, t: Array, projected: Array) -> Array:
        """Returns the logits [..., K] for a condition that `project` has already seen."""
        # x_t: [..., bits], t: [...], projected: [..., width]; leading axes broadcast
        modulator = _placed(nn.silu(projected + self.time_embedding(t)))
        h = self.bits_in(2.0 * x_t.astype(jnp.float32) - 1.0).astype(jnp.float32)
        h = jnp.broadcast_to(h, jnp.broadcast_shapes(h.shape, modulator.shape))
        h, _ = self.layers(h, modulator)
        shift, scale = jnp.split(self.out_modulation(modulator), 2, axis=-1)
        return self.out(_modulated_norm(h, shift, scale))

    def time_embedding(self, t: Array) -> Array:
        """Returns the embedding [..., width] of times [...]."""
        return _placed(self.time_out(nn.silu(_placed(self.time_in(time_features(t))))))


def _placed(x: Array) -> Array:
    """Returns hidden vectors [B, N, width] as each device's own rows, others as they are.

    Times are drawn, from nothing that lies anywhere: their embedding would lie where the kernels
    do, and its gradient would be gathered from all devices.
    """
    return nn.with_logical_constraint(x, ("batch", "length", "act_embed")) if x.ndim == 3 else x
