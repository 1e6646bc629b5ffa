from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.ops.rope import grid_table, rotate

GRID, HEAD_DIM = (3, 5), 12


def turned(x, grid, conjugate=False):
    """Independent float64 evaluation: every pair of channels is a complex number."""
    z = x.astype(np.float64).reshape(*x.shape[:-1], -1, 2) @ np.array([1, 1j])
    quarter = z.shape[-1] // 2
    for position in range(grid[0] * grid[1]):
        row, col = divmod(position, grid[1])
        for j in range(quarter):
            frequency = 10000.0 ** (-j / quarter)
            for pair, angle in ((j, row * frequency), (quarter + j, col * frequency)):
                z[:, position, :, pair] *= np.exp(-1j * angle if conjugate else 1j * angle)
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


@pytest.fixture(scope="module")
def x():
    shape = (2, GRID[0] * GRID[1], 3, HEAD_DIM)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def rotated(x):
    return np.asarray(jax.jit(rotate)(x, grid_table(GRID, HEAD_DIM)))


def test_rotation_matches_complex_numbers(x, rotated):
    np.testing.assert_allclose(rotated, turned(x, GRID), atol=2e-6)


def test_rotation_keeps_lengths(x, rotated):
    np.testing.assert_allclose((rotated**2).sum(-1), (x**2).sum(-1), rtol=1e-5)


def test_gradient_turns_back(x):
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    table = grid_table(GRID, HEAD_DIM)
    gradient = jax.jit(jax.grad(lambda x: (rotate(x, table) * weight).sum()))(x)
    np.testing.assert_allclose(gradient, turned(weight, GRID, conjugate=True), atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_products_depend_on_the_offset_alone(first, second, shift):
    side = 8
    rng = np.random.default_rng(2)
    query, key = rng.normal(size=(2, 8))
    table = grid_table((side, side), 8).astype(np.float64)

    def product(row, col, row2, col2):
        cos, sin = table[[row * side + col, row2 * side + col2]].transpose(2, 0, 1)
        pairs = (np.stack([query, key]).reshape(2, -1, 2) @ [1, 1j]) * (cos + 1j * sin)
        return (pairs[0] * pairs[1].conj()).real.sum()

    moved = (first[0] + shift[0], first[1] + shift[1], second[0] + shift[0], second[1] + shift[1])
    np.testing.assert_allclose(product(*first, *second), product(*moved), atol=1e-6)


def test_prefix_is_erased_or_left_alone():
    x = np.random.default_rng(3).normal(size=(1, 7, 2, 8)).astype(np.float32)
    zero = rotate(x, grid_table((2, 3), 8, prefix=1))
    same = rotate(x, grid_table((2, 3), 8, prefix=1, zero_prefix=False))
    assert not np.asarray(zero[:, 0]).any()
    np.testing.assert_array_equal(same[:, 0], x[:, 0])
    np.testing.assert_array_equal(zero[:, 1:], same[:, 1:])
    np.testing.assert_allclose(zero[:, 1:], turned(x[:, 1:], (2, 3)), atol=2e-6)


def test_one_position_has_angle_zero():
    np.testing.assert_array_equal(grid_table((1, 1), 4)[0], [[1, 0], [1, 0]])


def test_low_precision_is_rotated_in_float32():
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 6, 1, 4)), jnp.bfloat16)
    y = rotate(x, grid_table((2, 3), 4))
    assert y.dtype == jnp.bfloat16
    wanted = rotate(x.astype(jnp.float32), grid_table((2, 3), 4)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), wanted.astype(jnp.float32))


def test_head_dim_must_hold_both_axes():
    with pytest.raises(ValueError, match="head_dim=6"):
        grid_table((2, 2), 6)


def test_a_finer_grid_lies_within_the_angles_of_a_coarser_one():
    # The frequencies are 1 and 10000^(-1/2); the cells of 4 x 2 are halves of those of 2 x 2.
    table = grid_table((4, 2), 8, span=(2, 2)).reshape(4, 2, 4, 2).astype(np.float64)
    angles = np.arctan2(table[..., 1], table[..., 0])
    rows = np.array([-0.25, 0.25, 0.75, 1.25])[:, None]
    np.testing.assert_allclose(angles[..., 0], rows + np.zeros((1, 2)), atol=1e-6)
    np.testing.assert_allclose(angles[..., 1], 0.01 * rows + np.zeros((1, 2)), atol=1e-6)
    np.testing.assert_allclose(angles[..., 2], np.tile([0.0, 1.0], (4, 1)), atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (7, 2)])
def test_a_grid_spans_itself(grid):
    plain = grid_table(grid, 8, prefix=2)
    np.testing.assert_array_equal(plain, grid_table(grid, 8, prefix=2, span=grid))
