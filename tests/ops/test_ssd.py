"""The scan in all its forms, against float64 recurrences written here."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.ops.ssd import FORMS, ssd


def scanned(
    x: Any, dt: Any, A: Any, B: Any, C: Any, state: Any, ids: Any, reverse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence, token by token, in float64."""
    x, dt, A, B, C = (np.asarray(v, np.float64) for v in (x, dt, A, B, C))
    y, state = np.zeros_like(x), np.array(state, np.float64)
    share = x.shape[2] // B.shape[2]
    order = range(x.shape[1])[:: -1 if reverse else 1]
    for row in range(len(x)):
        for place, t in enumerate(order):
            if place and ids[row, t] != ids[row, order[place - 1]]:
                state[row] = 0
            for head in range(x.shape[2]):
                group = head // share
                state[row, head] *= np.exp(dt[row, t, head] * A[head])
                state[row, head] += dt[row, t, head] * np.outer(x[row, t, head], B[row, t, group])
                y[row, t, head] = state[row, head] @ C[row, t, group]
    return y, state


def inputs(rng: Any, b: int, length: int, h: int, p: int, g: int, n: int) -> list[Any]:
    dt = np.log1p(np.exp(rng.normal(size=(b, length, h)) - 1))
    B, C = rng.normal(size=(2, b, length, g, n))
    arrays = rng.normal(size=(b, length, h, p)), dt, -np.exp(rng.normal(size=h)), B, C
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@functools.partial(jax.jit, static_argnames="form")
def compiled(*arrays: Any, form: str) -> Any:
    return ssd(*arrays, form=form, chunk=4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("b", "length", "heads", "chunk", "reverse"),
    [
        (1, 1, (2, 1), 4, False),
        (2, 17, (4, 2), 4, False),
        (2, 17, (4, 2), 4, True),
        (1, 16, (3, 3), 16, True),
        (3, 5, (2, 1), 64, False),
        (1, 6, (2, 1), 1, True),
    ],
)
def test_forms_agree_with_the_recurrence(
    form: str, b: int, length: int, heads: tuple[int, int], chunk: int, reverse: bool
) -> None:
    rng = np.random.default_rng(length)
    arrays = inputs(rng, b, length, heads[0], 3, heads[1], 2)
    state = rng.normal(size=(b, heads[0], 3, 2))
    ids = np.sort(rng.integers(0, 3, (b, length)), axis=1)
    wanted = scanned(*arrays, state, ids, reverse)
    run = functools.partial(ssd, form=form, chunk=chunk, reverse=reverse)
    start, segments = jnp.asarray(state, jnp.float32), jnp.asarray(ids)
    found = jax.jit(run)(*arrays, initial_state=start, segment_ids=segments)
    np.testing.assert_allclose(found.y, wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.state, wanted[1], rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 2), min_size=9, max_size=9), st.integers(0, 2**32 - 1))
def test_forms_agree_whatever_the_numbers(scales: list[int], seed: int) -> None:
    x, dt, A, B, C = inputs(np.random.default_rng(seed), 1, 9, 2, 2, 1, 3)
    # Steps of nothing, of the usual size, and so long that no state is left.
    dt = dt * jnp.asarray([0.0, 1.0, 40.0])[jnp.asarray(scales)][None, :, None]
    ids = np.zeros((1, 9))
    wanted = scanned(x, dt, A, B, C, np.zeros((1, 2, 2, 3)), ids, False)
    for form in FORMS:
        found = compiled(x, dt, A, B, C, form=form)
        scale = max(np.abs(wanted[0]).max(), 1.0)
        np.testing.assert_allclose(found.y, wanted[0], rtol=0, atol=5e-6 * scale)


def test_a_token_without_dt_leaves_no_trace() -> None:
    x, dt, A, B, C = inputs(np.random.default_rng(0), 1, 12, 2, 3, 1, 4)
    held = dt.at[:, 5:9].set(0.0)
    rest = np.r_[0:5, 9:12]
    wanted = compiled(x[:, rest], dt[:, rest], A, B[:, rest], C[:, rest], form="sequential")
    for form in ("sequential", "chunked", "scanned"):
        found = compiled(x, held, A, B, C, form=form)
        np.testing.assert_allclose(found.y[:, rest], wanted.y, atol=2e-6)
        np.testing.assert_allclose(found.state, wanted.state, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_decays_that_leave_nothing_have_gradients(form: str) -> None:
    x, dt, A, B, C = inputs(np.random.default_rng(1), 1, 20, 2, 3, 1, 4)

    def loss(*arrays: Any) -> Any:
        return jnp.square(ssd(*arrays, form=form, chunk=16).y).sum()

    gradients = jax.jit(jax.grad(loss, range(5)))(x, 100 * dt, 10 * A, B, C)
    assert all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize("form", ["chunked", "scanned"])
def test_products_in_bfloat16_with_sums_in_float32(form: str) -> None:
    x, dt, A, B, C = inputs(np.random.default_rng(2), 2, 64, 2, 8, 1, 8)
    low = [v.astype(jnp.bfloat16) for v in (x, B, C)]
    found = jax.jit(functools.partial(ssd, form=form, chunk=16))(low[0], dt, A, low[1], low[2])
    assert found.y.dtype == jnp.bfloat16 and found.state.dtype == jnp.float32
    full = [v.astype(jnp.float32) for v in (low[0], dt, A, low[1], low[2])]
    wanted = jax.jit(functools.partial(ssd, form="sequential"))(*full)
    scale = np.abs(wanted.y).max()
    assert np.abs(found.y.astype(jnp.float32) - wanted.y).max() < 0.02 * scale


def test_the_default_is_a_form_for_values_and_one_for_gradients() -> None:
    arrays = inputs(np.random.default_rng(3), 1, 20, 2, 3, 1, 4)

    def loss(*arrays: Any, **options: Any) -> Any:
        return jnp.square(ssd(*arrays, **options).y).sum()

    found = jax.jit(jax.value_and_grad(loss, range(5)))(*arrays)
    wanted = jax.jit(jax.value_and_grad(functools.partial(loss, form="sequential"), range(5)))
    for mine, theirs in zip(*map(jax.tree.leaves, (found, wanted(*arrays))), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    # Token by token without gradients, in chunks with them.
    plain, differentiated = (str(jax.make_jaxpr(f)(*arrays)) for f in (loss, jax.grad(loss)))
    assert "length=20" in plain and "length=20" not in differentiated


def test_what_does_not_fit_is_named() -> None:
    x, dt, A, B, C = inputs(np.random.default_rng(0), 1, 4, 2, 3, 1, 4)
    for changes, text in (
        (
            {"form": "fast"},
            "form is 'fast'; legal: auto, sequential, associative, chunked, scanned",
        ),
        ({"chunk": 0}, "chunk is 0"),
        ({"segment_ids": jnp.zeros((1, 3), int)}, "segment_ids has the shape"),
        ({"initial_state": jnp.zeros((1, 2, 4, 3))}, "initial_state has the shape"),
    ):
        with pytest.raises(ValueError, match=text):
            ssd(x, dt, A, B, C, **changes)
    with pytest.raises(ValueError, match="B has the shape"):
        ssd(x, dt, A, B[:, :3], C)
    with pytest.raises(ValueError, match="2 heads do not divide into 4 groups"):
        wide = jnp.repeat(B, 4, axis=2)
        ssd(x, dt, A, wide, wide)
