"""A multilayer perceptron that classifies flattened images."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.linear import FAN_IN, Linear

Array = jax.Array


class MLPClassifier(nn.Module):
    """Linear maps with ReLU between them, on all numbers of an image at once.

    __call__  images float [B, ...] in [0, 1] -> (logits float32 [B, classes], features float32 [B,
              widths[-1]]: what the last map sees); the same whether `deterministic` or not

    Attributes:
      classes: number of classes.
      widths: of the hidden layers, first to last; () is a linear classifier, whose features are the
        numbers of the image.
      dtype: of the products; parameters and logits are float32.
    """

    classes: int
    widths: tuple[int, ...] = (512, 512)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, deterministic: bool = True) -> tuple[Array, Array]:
        # images: [batch, ...]
        x = images.reshape(images.shape[0], -1).astype(self.dtype) * 2 - 1
        for index, width in enumerate(self.widths):
            x = nn.relu(self._linear(width, ("embed", "mlp"), f"hidden_{index}")(x))
        logits = self._linear(self.classes, ("embed", "codes"), "logits")(x)
        return logits.astype(jnp.float32), x.astype(jnp.float32)

    def _linear(self, width: int, names: tuple[str, str], name: str) -> Linear:
        return Linear((width,), names, bias=True, kernel_init=FAN_IN, dtype=self.dtype, name=name)
