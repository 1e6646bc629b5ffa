"""Binary codes eight to a byte, as they are stored."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def packed_size(length: int, bits: int) -> int:
    """Returns the bytes that `length` tokens of `bits` bits take: their product / 8, rounded up."""
    return -(-length * bits // 8)


def pack_bits(codes: Array) -> Array:
    """Returns codes in {0, 1}, [..., N, K], as uint8 [..., ceil(N K / 8)].

    The bits lie token after token and, within a token, bit 0 first; the first of every eight is the
    most significant of its byte, and the last byte is filled up with zeros: the order of
    `numpy.packbits(codes.reshape(..., N * K), axis=-1)`.
    """
    length, bits = codes.shape[-2:]
    flat = codes.reshape(*codes.shape[:-2], length * bits)
    return jnp.packbits(flat.astype(jnp.uint8), axis=-1)


def unpack_bits(packed: Array, shape: tuple[int, int]) -> Array:
    """Returns the codes, float32 {0, 1} [..., N, K], of what `pack_bits` packed.

    packed: uint8 [..., ceil(N K / 8)]; shape: (N, K)
    Raises ValueError where the bytes are not of N tokens of K bits.
    """
    if packed.dtype != jnp.uint8 or packed.shape[-1] != packed_size(*shape):
        raise ValueError(
            f"packed codes are {packed.dtype} {packed.shape}, expected uint8 "
            f"[..., {packed_size(*shape)}] for {shape[0]} tokens of {shape[1]} bits"
        )
    flat = jnp.unpackbits(packed, axis=-1, count=math.prod(shape))
    return flat.reshape(*packed.shape[:-1], *shape).astype(jnp.float32)
