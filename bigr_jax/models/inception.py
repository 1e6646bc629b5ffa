"""The Inception-v3 of 2015 in whose features FID is measured, with every habit of its graph.

It is not the Inception-v3 of today's libraries: 1008 classes, average pools that leave the padding
out, and a maximum in the last block where an average was meant. Sources: Szegedy et al. (arXiv
1512.00567); the graph classify_image_graph_def.pb of 2015-12-05 as ported by pytorch-fid and
torch-fidelity (github.com/mseitzer/pytorch-fid, github.com/toshas/torch-fidelity).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

SIDE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7
# Products of lower precision, the default on accelerators, move the features by up to a percent.
_EXACT = lax.Precision.HIGHEST


class Conv(NamedTuple):
    """A convolution without bias, batch normalisation and ReLU; `kernel` is (height, width)."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


# What a branch does one after another: a pool, a convolution, or several side by side.
Step = str | Conv | tuple[Conv, ...]
Branch = tuple[Step, ...]


def _strided(name: str, features: int) -> Conv:
    return Conv(name, features, (3, 3), 2, "VALID")


def _block_a(pooled: int) -> tuple[Branch, ...]:
    double = Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), *double),
        ("average", Conv("branch_pool", pooled)),
    )


def _block_b() -> tuple[Branch, ...]:
    double = Conv("branch3x3dbl_2", 96, (3, 3)), _strided("branch3x3dbl_3", 96)
    return (
        (_strided("branch3x3", 384),),
        (Conv("branch3x3dbl_1", 64), *double),
        ("halve",),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, row),
            Conv("branch7x7_3", 192, column),
        ),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, column),
            Conv("branch7x7dbl_3", width, row),
            Conv("branch7x7dbl_4", width, column),
            Conv("branch7x7dbl_5", 192, row),
        ),
        ("average", Conv("branch_pool", 192)),
    )


def _block_d() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3_1", 192), _strided("branch3x3_2", 320)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            _strided("branch7x7x3_4", 192),
        ),
        ("halve",),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    def forked(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), forked("branch3x3_2")),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            forked("branch3x3dbl_3"),
        ),
        (pool, Conv("branch_pool", 192)),
    )


# The published names, in their order; before the blocks, pools by the name of what is tapped after.
STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "64",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    "192",
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("maximum"),
}


class Taps(NamedTuple):
    """What is read of the network, float32.

    first            [batch, 64] means over the image, after the first pool
    second           [batch, 192] after the second pool
    middle           [batch, 768] after Mixed_6e
    spatial          [batch, 2023] the first 7 channels of Mixed_6d at 17 x 17 places; of sFID
    pool             [batch, 2048] after Mixed_7c; of FID, KID, precision and recall
    logits           [batch, 1008]
    logits_unbiased  [batch, 1008] the last layer without its bias; of the Inception Score
    """

    first: Array
    second: Array
    middle: Array
    spatial: Array
    pool: Array
    logits: Array
    logits_unbiased: Array


class InceptionV3(nn.Module):
    """The network of FID; its running statistics are the collection "batch_stats"."""

    @nn.compact
    def __call__(self, images: Array) -> Taps:
        """images: uint8 [batch, height, width, 3] of any size; float in [0, 255] is taken too.

        Raises ValueError for images of another rank or number of channels.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images {images.shape} are not [batch, height, width, 3]")
        x, found = prepared(images), {}
        for step in STEM:
            if isinstance(step, str):
                x = halved(x)
                found[step] = x
            else:
                x = _apply(step, x)
        for name, branches in BLOCKS.items():
            x = _Block(branches, name=name)(x)
            found[name] = x
        batch, pool = len(x), x.mean((1, 2))
        unbiased, logits = _Head(CLASSES, name="fc")(pool)
        return Taps(
            found["64"].mean((1, 2)),
            found["192"].mean((1, 2)),
            found["Mixed_6e"].mean((1, 2)),
            # The branch of 1x1 convolutions is the first of the block.
            found["Mixed_6d"][..., :SPATIAL_CHANNELS].reshape(batch, -1),
            pool,
            logits,
            unbiased,
        )


def prepared(images: Array) -> Array:
    """Returns what the first layer sees of images in [0, 255]: 299 x 299, in [-1, 1)."""
    return (tf1_resize(images.astype(jnp.float32), SIDE) - 128.0) / 128.0


def tf1_resize(images: Array, side: int) -> Array:
    """Returns float32 images [batch, height, width, C] as [batch, side, side, C], the way that
    TensorFlow 1 did.

    Bilinear without the shift of half a pixel and without smoothing: output i reads the input at
    i * height / side, and the last row and column are repeated.
    Source: ResizeBilinear of TensorFlow 1 with align_corners and half_pixel_centers off.
    """
    rows, columns = (_positions(size, side) for size in images.shape[1:3])

    def along(axis: int, at: tuple[np.ndarray, np.ndarray, np.ndarray], x: Array) -> Array:
        low, high, share = at
        share = share.reshape((-1, *[1] * (x.ndim - 1 - axis)))
        below = jnp.take(x, low, axis)
        return below + (jnp.take(x, high, axis) - below) * share

    return along(1, rows, along(2, columns, images))


def _positions(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two inputs that each of `side` outputs lies between, and how far from the first."""
    at = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = at.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def averaged(x: Array) -> Array:
    """Returns means over 3 x 3 places; at the edge, over those that there are."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def largest(x: Array) -> Array:
    """Returns maxima over 3 x 3 places, as the last block has them in place of means."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halved(x: Array) -> Array:
    """Returns maxima over 3 x 3 places, at every other place."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class _Block(nn.Module):
    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        found = []
        for branch in self.branches:
            h = x
            for step in branch:
                h = _apply(step, h)
            found.append(h)
        return jnp.concatenate(found, axis=-1)


class _Unit(nn.Module):
    conv: Conv

    @nn.compact
    def __call__(self, x: Array) -> Array:
        given = self.conv
        x = nn.Conv(
            given.features,
            given.kernel,
            given.stride,
            given.padding,
            use_bias=False,
            precision=_EXACT,
            name="conv",
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.he_normal(), (None, None, "conv_in", "conv_out")
            ),
        )(x)
        norm = nn.BatchNorm(
            use_running_average=True,
            epsilon=1e-3,
            name="bn",
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        )
        return nn.relu(norm(x))


class _Head(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns x W and x W + b."""
        init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        axes = ("embed", "vocab")
        shape = (x.shape[-1], self.features)
        kernel: Any = self.param("kernel", nn.with_logical_partitioning(init, axes), shape)
        bias: Any = self.param("bias", nn.with_logical_partitioning(zeros, axes[1:]), shape[1:])
        found = jnp.dot(x, kernel, precision=_EXACT)
        return found, found + bias


def _apply(step: Step, x: Array) -> Array:
    if isinstance(step, str):
        return {"average": averaged, "maximum": largest, "halve": halved}[step](x)
    if isinstance(step, Conv):
        return _Unit(step, name=step.name)(x)
    return jnp.concatenate([_apply(conv, x) for conv in step], axis=-1)
