"""Packed codes are those of NumPy's packbits, and come back as they were."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.ops.packing import pack_bits, packed_size, unpack_bits


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.sampled_from([(1, 1), (3, 5), (7, 8), (16, 24)]),
    st.integers(0, 99),
)
def test_what_is_packed_comes_back(
    rows: tuple[int, ...], shape: tuple[int, int], seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 2, (*rows, *shape)).astype(np.float32)
    packed = pack_bits(jnp.asarray(codes))
    flat = codes.reshape(*rows, -1).astype(np.uint8)
    np.testing.assert_array_equal(packed, np.packbits(flat, axis=-1))
    assert (packed.dtype, packed.shape[-1]) == (jnp.uint8, packed_size(*shape))
    back = unpack_bits(packed, shape)
    assert back.dtype == jnp.float32
    np.testing.assert_array_equal(back, codes)


def test_the_order_is_token_then_bit_most_significant_first() -> None:
    codes = np.zeros((1, 3, 5), np.float32)
    codes[0, 0, 0] = codes[0, 1, 4] = codes[0, 2, 0] = 1
    assert np.asarray(pack_bits(jnp.asarray(codes))).tolist() == [[0b10000000, 0b01100000]]
    np.testing.assert_array_equal(np.flatnonzero(codes), [0, 9, 10])


def test_every_byte_is_unpacked_as_numpy_does() -> None:
    packed = np.arange(256, dtype=np.uint8)[:, None]
    compiled = jax.jit(unpack_bits, static_argnums=1)(packed, (2, 4))
    expected = np.unpackbits(packed, axis=-1).reshape(256, 2, 4)
    np.testing.assert_array_equal(compiled, expected)


def test_the_published_codes_of_an_image_take_768_bytes() -> None:
    assert packed_size(256, 24) == 768
    assert packed_size(1024, 32) == 4096


def test_bytes_of_another_size_or_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(2, 3\), expected uint8 \[..., 2\] for 3 tokens"):
        unpack_bits(jnp.zeros((2, 3), jnp.uint8), (3, 5))
    with pytest.raises(ValueError, match=r"packed codes are int32 \(2, 2\)"):
        unpack_bits(jnp.zeros((2, 2), jnp.int32), (3, 5))
