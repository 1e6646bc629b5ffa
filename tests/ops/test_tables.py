"""Tables with a row per example: their size, and examples that stand in a batch several times."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.ops.tables import PARTS, mean_of_same, table_rows


@given(st.integers(1, 10**7))
def test_a_table_has_a_row_for_each_and_equal_parts(examples):
    rows = table_rows(examples)
    assert examples <= rows < examples + PARTS and rows % PARTS == 0


def test_no_example_no_table():
    with pytest.raises(ValueError, match="examples is 0"):
        table_rows(0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 99))
def test_rows_of_one_index_have_their_mean_and_others_their_bits(index, seed):
    rng = np.random.default_rng(seed)
    index, values = np.array(index), rng.normal(size=(len(index), 3)).astype("f4")
    found = np.asarray(mean_of_same(jnp.asarray(index), jnp.asarray(values)))
    for row, place in enumerate(index):
        same = values[index == place]
        if len(same) == 1:
            assert found[row].tobytes() == values[row].tobytes()
        np.testing.assert_allclose(found[row], same.astype("f8").mean(0), atol=1e-6)
        assert found[row].tobytes() == found[np.argmax(index == place)].tobytes()
    order = rng.permutation(len(index))
    moved = mean_of_same(jnp.asarray(index[order]), jnp.asarray(values[order]))
    np.testing.assert_allclose(moved, found[order], atol=1e-6)
