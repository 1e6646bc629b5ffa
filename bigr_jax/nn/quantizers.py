"""Quantisers between an encoder's features and a decoder's input."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.ops.quantize import bernoulli, binarize

Array = jax.Array


class BinaryQuantizer(nn.Module):
    """Binary codes: one logit per bit on the way in, a sum of one learned vector per set bit out.

    Source: Binary Latent Diffusion (arXiv 2304.04820, section 3.1).
    """

    bits: int
    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        partitioned = nn.with_logical_partitioning
        self.proj = nn.Dense(
            self.bits,
            dtype=self.dtype,
            kernel_init=partitioned(nn.initializers.lecun_normal(), ("conv_in", "codes")),
            bias_init=partitioned(nn.initializers.zeros, ("codes",)),
        )
        self.embed = nn.Dense(
            self.features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=partitioned(nn.initializers.normal(1.0), ("codes", "conv_out")),
        )

    def logits(self, features: Array) -> Array:
        """features: [..., features] -> float32 logits [..., bits] of a bit being 1."""
        return self.proj(features).astype(jnp.float32)

    def codes(
        self, logits: Array, key: Array | None = None, uniforms: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns codes in {0, 1} and the probabilities of a 1, both float32 [..., bits].

        The codes are drawn with `key` or from recorded `uniforms` (stochastic), or are the likelier
        values where neither is given (deterministic). Gradients pass straight through.
        """
        probabilities = nn.sigmoid(logits)
        if key is not None:
            return bernoulli(key, probabilities), probabilities
        return binarize(probabilities, uniforms), probabilities

    def embedded(self, codes: Array) -> Array:
        """codes: [..., bits] -> sum_k codes_k E_k: [..., features] in the module's dtype."""
        return self.embed(codes)
