"""Convolution of every channel of a map by itself."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from bigr_jax.ops.scan_choice import platform

Array = jax.Array


def depthwise_conv(x: Array, kernel: Array) -> Array:
    """Returns the map [batch, height, width, channels], padded with zeros to keep its size, in
    correlation with a kernel [rows, columns, 1, channels] of odd sides.

    On a CPU, where XLA takes one channel after the other, it is a sum of shifted maps: 20 to 90
    times faster. Raises ValueError for a kernel with an even side.
    """
    if not kernel.shape[0] % 2 or not kernel.shape[1] % 2:
        raise ValueError(f"kernel {kernel.shape} has an even side; legal: odd ones")
    if platform() == "cpu":
        return _shifted(x, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(side // 2, side // 2) for side in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def _shifted(x: Array, kernel: Array) -> Array:
    return _total(x, kernel)


def _total(x: Array, kernel: Array) -> Array:
    rows, columns = kernel.shape[:2]
    weights = kernel.reshape(rows * columns, -1)
    total = jnp.zeros(x.shape, jnp.float32)
    for weight, part in zip(weights, _parts(x, rows, columns), strict=True):
        total = total + weight * part
    return total.astype(x.dtype)


def _parts(x: Array, rows: int, columns: int) -> Iterator[Array]:
    """Yields what the map's places see at each place of the kernel, row by row."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    for row in range(rows):
        for column in range(columns):
            yield padded[:, row : row + height, column : column + width]


def _kept(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _total(x, kernel), (x, kernel)


def _slopes(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = kept
    # As products of matrices: the compiler would else keep every shifted map, to add it up.
    sums = [
        jnp.einsum("bhwc,bhwc->c", part, slope, preferred_element_type=jnp.float32)
        for part in _parts(x, *kernel.shape[:2])
    ]
    return _total(slope, kernel[::-1, ::-1]), jnp.stack(sums).reshape(kernel.shape).astype(
        kernel.dtype
    )


_shifted.defvjp(_kept, _slopes)
