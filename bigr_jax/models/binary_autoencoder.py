"""The binary autoencoder: images in [0, 1] <-> a grid of K-bit codes.

Source: Binary Latent Diffusion (arXiv 2304.04820); sizes of BiGR (arXiv 2410.14672).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigr_jax.errors import UserError
from bigr_jax.nn.conv import AttnBlock, Downsample, ResBlock, Upsample, conv, group_norm
from bigr_jax.nn.quantizers import BinaryQuantizer

Array = jax.Array

# Where the adaptive weight of the adversarial loss takes its gradients: the decoder's last kernel.
LAST_KERNEL = ("params", "decoder", "conv_out", "kernel")


class Block(NamedTuple):
    """One block of a stack: its kind, its name among the parameters, its output channels."""

    kind: str
    name: str
    features: int


class Stack(nn.Module):
    """Blocks in a row; `plan` lists them in the order in which the published files number them."""

    plan: tuple[Block, ...]
    groups: int = 32
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [batch, height, width, channels] -> the same rank, resized as the plan says."""
        for block in self.plan:
            x = self._layer(block)(x)
            if block.kind in ("conv", "down", "up"):
                x = nn.with_logical_constraint(x, ("batch", "height", "width", "channels"))
        return x

    def _layer(self, block: Block) -> Any:
        _, name, features = block
        kept: Any = nn.remat if self.remat else lambda module: module
        return {
            "conv": lambda: conv(features, 3, self.dtype, name),
            "norm": lambda: group_norm(features, self.groups, self.dtype, name),
            "res": lambda: kept(ResBlock)(features, self.groups, self.dtype, name=name),
            "attention": lambda: kept(AttnBlock)(self.groups, self.dtype, name=name),
            "down": lambda: Downsample(self.dtype, name=name),
            "up": lambda: Upsample(self.dtype, name=name),
        }[block.kind]()


class BinaryAutoencoder(nn.Module):
    """Encoder, binary quantiser and decoder; images and reconstructions are in [0, 1].

    filters       channels of the first level; level i has filters * multipliers[i]
    multipliers   one per level; each level but the last halves height and width
    blocks        residual blocks per level of the encoder; the decoder has int(blocks * gen_mul)
    attention_resolutions   feature-map heights (at `image_size`) whose blocks attend
    embedding     channels between encoder, codes and decoder
    bits          K, the bits of one code
    norm_first    the decoder normalises its input
    groups        of every GroupNorm; see `bigr_jax.nn.conv.group_norm`
    remat         recompute residual and attention blocks in the backward pass, to save memory
    """

    filters: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    embedding: int = 256
    bits: int = 24
    image_size: int = 256
    channels: int = 3
    norm_first: bool = True
    gen_mul: float = 1.0
    groups: int = 32
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
        """How many pixels a code spans along each axis: 2^(levels - 1)."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along each axis of an image of `image_size`."""
        return self.image_size // self.factor

    def setup(self) -> None:
        if not self.multipliers or self.image_size < 1 or self.image_size % self.factor:
            raise UserError(
                f"image_size={self.image_size} is not divisible by {self.factor}, as "
                f"multipliers={self.multipliers} (one per level, halving between) requires"
            )
        common: dict[str, Any] = {"groups": self.groups, "remat": self.remat, "dtype": self.dtype}
        self.encoder = Stack(encoder_plan(self), **common)
        self.quantizer = BinaryQuantizer(self.bits, self.embedding, self.dtype)
        self.decoder = Stack(decoder_plan(self), **common)

    def __call__(self, image: Array, key: Array | None = None) -> tuple[Array, Array, Array]:
        """Returns (reconstruction, codes, probabilities) of images.

        image: [batch, height, width, channels] in [0, 1] -> float32 reconstruction of the same
        shape (not clipped), codes in {0, 1} and probabilities [batch, h, w, bits], h = height /
        factor. With a `key` the codes are drawn (training), without one they are deterministic.
        Raises ValueError for images that the levels cannot halve.
        """
        codes, probabilities = self.quantize(self.encode(image), key)
        return self.decode(codes), codes, probabilities

    def encode(self, image: Array) -> Array:
        """image: [batch, height, width, channels] in [0, 1] -> logits [batch, h, w, bits]."""
        _, height, width, channels = image.shape
        if height % self.factor or width % self.factor or channels != self.channels:
            raise ValueError(
                f"image {image.shape} must be [batch, height, width, {self.channels}] with height "
                f"and width divisible by {self.factor}"
            )
        return self.quantizer.logits(self.encoder(image.astype(self.dtype)))

    def quantize(
        self, logits: Array, key: Array | None = None, uniforms: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns codes and probabilities; see `BinaryQuantizer.codes`."""
        return self.quantizer.codes(logits, key, uniforms)

    def decode(self, codes: Array) -> Array:
        """codes: [batch, h, w, bits] in {0, 1} -> float32 [batch, height, width, channels]."""
        if codes.ndim != 4 or codes.shape[-1] != self.bits:
            raise ValueError(f"codes {codes.shape} must be [batch, h, w, {self.bits}]")
        return self.decoder(self.quantizer.embedded(codes)).astype(jnp.float32)


def at_image_size(net: BinaryAutoencoder, size: int) -> BinaryAutoencoder:
    """Returns the model for images of another size, which reads the same variables.

    Attention stays in the layers where it is. Raises UserError for a size that the levels cannot
    halve.
    """
    places = tuple(side * size // net.image_size for side in net.attention_resolutions)
    if size < 1 or size % net.factor:
        raise UserError(f"size={size} is not a multiple of {net.factor} pixels, a token")
    return net.clone(image_size=size, attention_resolutions=places, parent=None)


def encoder_plan(model: BinaryAutoencoder) -> tuple[Block, ...]:
    """Returns the encoder's blocks; the last norm has no nonlinearity behind it, as published."""
    size, last = model.image_size, len(model.multipliers) - 1
    plan = [Block("conv", "conv_in", model.filters)]
    for level, multiplier in enumerate(model.multipliers):
        width = model.filters * multiplier
        plan += _level(level, width, model.blocks, size in model.attention_resolutions)
        if level != last:
            plan.append(Block("down", f"level_{level}_down", width))
            size //= 2
    return (*plan, *_middle(width), *_out(width, model.embedding))


def decoder_plan(model: BinaryAutoencoder) -> tuple[Block, ...]:
    """Returns the decoder's blocks: the encoder's levels in reverse."""
    size, width = model.grid, model.filters * model.multipliers[-1]
    plan = [Block("norm", "norm_in", model.embedding)] if model.norm_first else []
    plan += [Block("conv", "conv_in", width), *_middle(width)]
    for level, multiplier in reversed(list(enumerate(model.multipliers))):
        width, blocks = model.filters * multiplier, int(model.blocks * model.gen_mul)
        plan += _level(level, width, blocks, size in model.attention_resolutions)
        if level:
            plan.append(Block("up", f"level_{level}_up", width))
            size *= 2
    return (*plan, *_out(width, model.channels))


def _level(level: int, width: int, blocks: int, attends: bool) -> list[Block]:
    plan = []
    for index in range(blocks):
        plan.append(Block("res", f"level_{level}_block_{index}", width))
        if attends:
            plan.append(Block("attention", f"level_{level}_attention_{index}", width))
    return plan


def _middle(width: int) -> list[Block]:
    return [
        Block("res", "middle_block_0", width),
        Block("attention", "middle_attention", width),
        Block("res", "middle_block_1", width),
    ]


def _out(width: int, features: int) -> list[Block]:
    return [Block("norm", "norm_out", width), Block("conv", "conv_out", features)]


# The autoencoders of BiGR: 16 pixels per code and axis; weights are public for d24, d32, d32-512.
PUBLISHED: Mapping[str, BinaryAutoencoder] = {
    f"B-AE-d{bits}": BinaryAutoencoder(bits=bits) for bits in (16, 20, 24, 32)
} | {"B-AE-d32-512": BinaryAutoencoder(bits=32, image_size=512)}
