"""Quasiseparable mixing in all its forms, against its matrix in float64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax.ops.quasiseparable import FORMS, Direction, materialize, quasiseparable


def inputs(
    rng: Any, b: int, length: int, h: int, p: int, g: int, n: int
) -> tuple[Any, Any, Direction, Direction, Any]:
    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def direction() -> Direction:
        dt = jax.nn.softplus(normal(b, length, h) - 1)
        return Direction(dt, normal(b, length, g, n), normal(b, length, g, n))

    rest = direction(), direction(), normal(b, length, h)
    return normal(b, length, h, p), -jnp.exp(normal(h)), *rest


def matrix(A: Any, f: Direction, k: Direction, delta: Any, ids: Any) -> np.ndarray:
    """M as the module's docstring has it, entry by entry, in float64."""
    A, delta = np.asarray(A, np.float64), np.asarray(delta, np.float64)
    (fdt, fB, fC), (kdt, kB, kC) = (tuple(np.asarray(v, np.float64) for v in way) for way in (f, k))
    b, length, h = delta.shape
    share = h // fB.shape[2]
    found = np.zeros((b, h, length, length))
    for row, head, i, j in np.ndindex(*found.shape):
        group = head // share
        if ids[row, i] != ids[row, j]:
            continue
        if i > j:
            decay = np.exp(A[head] * fdt[row, j + 1 : i, head].sum())
            pair = fC[row, i - 1, group] @ fB[row, j, group]
            found[row, head, i, j] = pair * fdt[row, j, head] * decay
        elif i < j:
            decay = np.exp(A[head] * kdt[row, i + 1 : j, head].sum())
            pair = kC[row, i + 1, group] @ kB[row, j, group]
            found[row, head, i, j] = pair * kdt[row, j, head] * decay
        else:
            found[row, head, i, j] = delta[row, i, head]
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("b", "length", "heads", "chunk"),
    [(1, 1, (2, 1), 4), (2, 2, (2, 1), 4), (2, 13, (4, 2), 4), (1, 12, (2, 2), 12)],
)
def test_forms_are_the_matrix(
    form: str, b: int, length: int, heads: tuple[int, int], chunk: int
) -> None:
    rng = np.random.default_rng(length)
    x, A, f, k, delta = inputs(rng, b, length, heads[0], 3, heads[1], 2)
    ids = np.sort(rng.integers(0, 3, (b, length)), axis=1)
    wanted = np.einsum("bhij,bjhp->bihp", matrix(A, f, k, delta, ids), np.asarray(x, np.float64))
    run = jax.jit(functools.partial(quasiseparable, form=form, chunk=chunk))
    found = run(x, A, f, k, delta, segment_ids=jnp.asarray(ids))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


@functools.partial(jax.jit, static_argnames="form")
def compiled(*arrays: Any, form: str) -> Any:
    return quasiseparable(*arrays, form=form, chunk=4)


@given(st.lists(st.integers(0, 2), min_size=9, max_size=9), st.integers(0, 2**32 - 1))
def test_forms_agree_whatever_the_numbers(scales: list[int], seed: int) -> None:
    x, A, f, k, delta = inputs(np.random.default_rng(seed), 1, 9, 2, 2, 1, 3)
    # Steps of nothing, of the usual size, and so long that no state is left.
    steps = jnp.asarray([0.0, 1.0, 40.0])[jnp.asarray(scales)][None, :, None]
    f, k = f._replace(dt=f.dt * steps), k._replace(dt=k.dt * steps[:, ::-1])
    M = matrix(A, f, k, delta, np.zeros((1, 9)))
    wanted = np.einsum("bhij,bjhp->bihp", M, np.asarray(x, np.float64))
    for form in FORMS:
        found = compiled(x, A, f, k, delta, form=form)
        atol = 5e-6 * max(np.abs(wanted).max(), 1.0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def test_the_materialized_matrix() -> None:
    _, A, f, k, delta = inputs(np.random.default_rng(0), 2, 9, 4, 3, 2, 5)
    wanted = matrix(A, f, k, delta, np.zeros((2, 9)))
    np.testing.assert_allclose(materialize(A, f, k, delta), wanted, rtol=1e-4, atol=1e-5)


def test_what_lies_off_the_diagonal_has_the_rank_of_the_state() -> None:
    _, A, f, k, delta = inputs(np.random.default_rng(1), 1, 12, 1, 3, 1, 2)
    M = np.asarray(materialize(A, f, k, delta)[0, 0], np.float64)
    for cut in range(1, 12):
        for block in (M[cut:, :cut], M[:cut, cut:]):
            assert np.linalg.matrix_rank(block, tol=1e-4) <= 2
    assert np.linalg.matrix_rank(M) == 12


def test_one_direction_alone_is_a_triangle() -> None:
    _, A, f, k, delta = inputs(np.random.default_rng(2), 1, 8, 2, 3, 1, 4)
    nothing = k._replace(B=jnp.zeros_like(k.B))
    lower = materialize(A, f, nothing, jnp.zeros_like(delta))
    assert not np.triu(np.asarray(lower)).any() and np.tril(np.asarray(lower), -1).any()
    upper = materialize(A, nothing, f, jnp.zeros_like(delta))
    assert not np.tril(np.asarray(upper)).any()


@functools.cache
def both(form: str, state: bool) -> list[Any]:
    """The values of a form, and its gradients."""
    rng = np.random.default_rng(3)
    arrays = inputs(rng, 2, 21, 4, 3, 2, 5)
    start = jnp.asarray(rng.normal(size=(2, 4, 3, 5)), jnp.float32) if state else None

    def run(*arrays: Any) -> Any:
        y = quasiseparable(*arrays, form=form, chunk=8, initial_state=start)
        return jnp.square(y).sum(), y

    gradients, y = jax.jit(jax.grad(run, range(5), has_aux=True))(*arrays)
    return [y, *jax.tree.leaves(gradients)]


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("form", ["fused", "streamed", "matrix", "sequential", "auto"])
def test_values_and_gradients_are_those_of_two_scans(form: str, state: bool) -> None:
    found, wanted = both(form, state), both("official", state)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=2e-6 * np.abs(wanted[0]).max())
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("form", ["fused", "streamed"])
def test_gradients_of_the_exact_matrix(form: str) -> None:
    """Against the float64 derivative by finite differences, along random directions."""
    rng = np.random.default_rng(4)
    arrays = inputs(rng, 1, 7, 2, 3, 1, 2)
    flat, tree = jax.tree.flatten(arrays)
    wide = [np.asarray(leaf, np.float64) for leaf in flat]

    def exact(leaves: list[np.ndarray]) -> float:
        x, A, f, k, delta = jax.tree.unflatten(tree, leaves)
        M = matrix(A, f, k, delta, np.zeros((1, 7)))
        return float(np.square(np.einsum("bhij,bjhp->bihp", M, x)).sum())

    def loss(*arrays: Any) -> Any:
        return jnp.square(quasiseparable(*arrays, form=form, chunk=4)).sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss, range(5)))(*arrays))
    for place, found in enumerate(gradients):
        way = rng.normal(size=wide[place].shape)
        sides = []
        for step in (1e-5, -1e-5):
            moved = [*wide[:place], wide[place] + step * way, *wide[place + 1 :]]
            sides.append(exact(moved))
        wanted = (sides[0] - sides[1]) / 2e-5
        assert float((np.asarray(found, np.float64) * way).sum()) == pytest.approx(wanted, rel=1e-4)


def cost(form: str, gradients: bool) -> dict[str, float]:
    """XLA's own count of a program at 1024 tokens, in chunks of 64."""

    def run(*arrays: Any) -> Any:
        return quasiseparable(*arrays, form=form, chunk=64)

    def loss(*arrays: Any) -> Any:
        return run(*arrays).sum()

    made = functools.partial(inputs, np.random.default_rng(0), 2, 1024, 8, 64, 1, 64)
    function = jax.value_and_grad(loss, range(5)) if gradients else run
    return jax.jit(function).lower(*jax.eval_shape(made)).compile().cost_analysis()


def test_work_is_that_of_the_formula() -> None:
    """Source: the count of Hydra's chunks by hand, for P = N = 64 and one group of 8 heads."""
    q, n, p, g, h = 64, 64, 64, 1, 8
    one = 2 * q * (n * g / h + p) + 4 * n * p + 2 * n * p / q
    two = 2 * q * (2 * n * g / h + p) + 8 * n * p + 4 * n * p / q
    tokens = 2 * 1024 * 8
    official, fused = cost("official", False), cost("fused", False)
    assert 2 * one * tokens < official["flops"] <= 1.05 * 2 * one * tokens
    assert two * tokens < fused["flops"] <= 1.05 * two * tokens
    for name in ("flops", "bytes accessed", "transcendentals"):
        assert fused[name] < 0.9 * official[name]
    assert cost("fused", True)["flops"] <= 3.3 * two * tokens


def test_what_does_not_fit_is_named() -> None:
    x, A, f, k, delta = inputs(np.random.default_rng(0), 1, 4, 2, 3, 1, 4)
    with pytest.raises(
        ValueError, match="form is 'fast'; legal: auto, sequential, official, matrix, fused"
    ):
        quasiseparable(x, A, f, k, delta, form="fast")
    with pytest.raises(ValueError, match=r"backward\.C has the shape"):
        quasiseparable(x, A, f, k._replace(C=k.C[:, :3]), delta)
    with pytest.raises(ValueError, match="exclude each other"):
        state, ids = jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 4), int)
        quasiseparable(x, A, f, k, delta, initial_state=state, segment_ids=ids)
