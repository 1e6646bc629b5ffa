"""Classifiers whose layers answer to hyper-parameters, among them their own rates of dropout."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.nn.hyperparameters import dropout
from bigr_jax.nn.response import HyperConv, HyperDense

Array = jax.Array


class ResponseMLP(nn.Module):
    """Linear maps with ReLU between them, with dropout of the input and of the hidden layers.

    __call__  images float [B, ...] in [0, 1], h [B, tuned] or None, rates {"input": [B], "hidden":
              [B]}, where a name that is not there is no dropout -> logits float32 [B, classes];
              draws from the rng "dropout" where there are rates

    Attributes:
      classes: number of classes.
      widths: of the hidden layers, first to last.
      tuned: numbers in h; 0 is a plain network.
      dtype: of the products; parameters and logits are float32.
    """

    classes: int
    widths: tuple[int, ...] = (256, 256)
    tuned: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Array, h: Array | None = None, rates: Mapping[str, Array] | None = None
    ) -> Array:
        # images: [batch, ...]
        x = self._dropped(images.reshape(len(images), -1).astype(self.dtype), rates, "input")
        for index, width in enumerate(self.widths):
            x = nn.relu(self._linear(width, f"hidden_{index}")(x, h))
            x = self._dropped(x, rates, "hidden")
        return self._linear(self.classes, "logits")(x, h).astype(jnp.float32)

    def _linear(self, width: int, name: str) -> HyperDense:
        names = ("embed", "codes" if name == "logits" else "mlp")
        return HyperDense(width, self.tuned, self.dtype, names, name=name)

    def _dropped(self, x: Array, rates: Mapping[str, Array] | None, name: str) -> Array:
        rate = (rates or {}).get(name)
        return x if rate is None else dropout(self.make_rng("dropout"), x, rate)


class ResponseAlexNet(nn.Module):
    """A small AlexNet of 32 x 32 images: five convolutions, three poolings, three linear maps.

    __call__  as `ResponseMLP`; rates "input", "conv0" to "conv4" (of what the convolutions give)
              and "fc0", "fc1" (of what the first two linear maps see)

    Attributes:
      channels: of the convolutions; those after the first two see maps of a quarter of the sides.
      hidden: width of the first two linear maps.
    """

    classes: int
    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    tuned: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Array, h: Array | None = None, rates: Mapping[str, Array] | None = None
    ) -> Array:
        # images: [batch, height, width, channels]
        x = self._dropped((images * 2 - 1).astype(self.dtype), rates, "input")
        for index, channels in enumerate(self.channels):
            # The first halves the map, as a pooling does after the first, the second and the last.
            size, strides = (5 if index == 1 else 3), (2 if index == 0 else 1)
            named = f"conv{index}"
            layer = HyperConv(
                channels, self.tuned, self.dtype, size=size, strides=strides, name=named
            )
            x = nn.relu(layer(x, h))
            if index in (0, 1, len(self.channels) - 1):
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = self._dropped(x, rates, named)
        x = x.reshape(len(x), -1)
        for index in range(2):
            x = self._dropped(x, rates, f"fc{index}")
            x = nn.relu(HyperDense(self.hidden, self.tuned, self.dtype, name=f"fc{index}")(x, h))
        names = ("embed", "codes")
        last = HyperDense(self.classes, self.tuned, self.dtype, names, name="logits")
        return last(x, h).astype(jnp.float32)

    def _dropped(self, x: Array, rates: Mapping[str, Array] | None, name: str) -> Array:
        rate = (rates or {}).get(name)
        return x if rate is None else dropout(self.make_rng("dropout"), x, rate)
