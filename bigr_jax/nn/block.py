"""The pre-norm residual block."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigr_jax.nn.adaln import ModulationOffset, modulate
from bigr_jax.nn.mixers import make
from bigr_jax.nn.mlp import SwiGLU
from bigr_jax.nn.norms import RMSNorm

Array = jax.Array

_RESIDUAL = ("batch", "length", "act_embed")


class Block(nn.Module):
    """h = x + mixer(norm(x)), then h + SwiGLU(norm(h)); a condition may modulate both branches.

    Attributes:
      heads: heads of the mixer.
      hidden: hidden features of the SwiGLU.
      mixer: name of the token mixer in `nn.mixers`.
      grid: (height, width) of the map that the last tokens are, for mixers that see one.
      adaln: takes a modulation (`nn.adaln`) and adds this layer's offset to it.
      dropout: rate at the end of both branches.
      dtype: of the matrix products; the residual stream, norms and modulation are float32.

    Source: Llama (arXiv 2302.13971), modulated as DiT (arXiv 2212.09748), section 3.2.
    """

    heads: int
    hidden: int
    mixer: str = "attention"
    grid: tuple[int, int] | None = None
    adaln: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        modulation: Array | None = None,
        mask: Array | None = None,
        rope: Array | np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Returns the next residual stream, as x.

        x: float32 [batch, length, width], modulation: float32 [batch, 1, 6, width] where `adaln`,
        mask, rope: as `nn.mixers` has them.
        """
        six: Any = (0.0, 0.0, 1.0) * 2
        if self.adaln:
            if modulation is None:
                raise ValueError("a block with adaln=True needs a modulation")
            six = jnp.moveaxis(ModulationOffset(name="modulation")(modulation), -2, 0)
        shift_mixer, scale_mixer, gate_mixer, shift_mlp, scale_mlp, gate_mlp = six
        options: dict[str, Any] = {"dropout": self.dropout, "dtype": self.dtype}
        mixer = make(self.mixer, heads=self.heads, grid=self.grid, name="mixer", **options)
        mlp = SwiGLU(self.hidden, name="mlp", **options)
        u = modulate(RMSNorm(name="mixer_norm")(x), shift_mixer, scale_mixer)
        x = x + gate_mixer * mixer(u, mask, rope, deterministic)
        u = modulate(RMSNorm(name="mlp_norm")(x), shift_mlp, scale_mlp)
        x = x + gate_mlp * mlp(u, deterministic)
        return nn.with_logical_constraint(x, _RESIDUAL)
