"""Changes of images whose strength every example has of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data.example_augment import MOST_HOLES, NAMES, cutout, example_augment, turned

KEY = jax.random.key(0)
ROWS, SIZE = 3, 9


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=ROWS, max_size=ROWS),
    st.lists(st.integers(0, MOST_HOLES), min_size=ROWS, max_size=ROWS),
    st.integers(0, 99),
)
def test_every_image_has_holes_of_its_own_number_and_length(lengths, holes, seed):
    key = jax.random.key(seed)
    shape = (ROWS, SIZE, SIZE + 2, 2)
    length, count = (jnp.array(x, jnp.float32) for x in (lengths, holes))
    found = np.asarray(cutout(key, jnp.ones(shape), length, count))
    wanted = np.ones(shape)
    ys, xs = (
        np.asarray(jax.random.randint(one, (ROWS, MOST_HOLES), 0, size))
        for one, size in zip(jax.random.split(key), shape[1:3], strict=True)
    )
    for row in range(ROWS):
        for hole in range(holes[row]):
            y, x = ys[row, hole] - lengths[row] // 2, xs[row, hole] - lengths[row] // 2
            ends = y + lengths[row], x + lengths[row]
            wanted[row, max(y, 0) : max(ends[0], 0), max(x, 0) : max(ends[1], 0)] = 0
    np.testing.assert_array_equal(found, wanted)


def strengths(value):
    return {name: jnp.full(ROWS, value) for name in NAMES}


def test_no_strength_changes_nothing_and_a_row_is_changed_by_its_own():
    images = jax.random.uniform(KEY, (ROWS, SIZE, SIZE, 3))
    np.testing.assert_allclose(example_augment(KEY, images, strengths(0.0)), images, atol=1e-5)
    np.testing.assert_array_equal(example_augment(KEY, images, {}), images)
    for name in ("brightness", "contrast", "saturation", "hue", "scale"):
        found = example_augment(KEY, images, {name: jnp.array([0.0, 0.4, 0.0])})
        changed = np.abs(found - images).max((1, 2, 3)) > 1e-3
        assert changed.tolist() == [False, True, False], name


def test_colours_turn_about_grey_and_come_back():
    images = jax.random.uniform(KEY, (2, 4, 4, 3)) * 0.2 + 0.4
    grey = np.array([0.299, 0.587, 0.114])
    found = turned(images, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found @ grey, images @ grey, atol=1e-5)
    np.testing.assert_allclose(turned(found, jnp.array([-1.0, -2.0])), images, atol=1e-5)
    assert np.abs(found - images).max() > 0.02
