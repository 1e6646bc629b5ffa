"""Which form is taken, and that one for values and one for derivatives pass for one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bigr_jax.ops import quasiseparable, scan_choice, ssd
from bigr_jax.ops.scan_choice import Choice, Row, by_need, chosen, recomputed

X, PAIR = 5.0, (7.0, 1.0)


def values(x: Any, pair: Any, run: Any = None) -> Any:
    return 2 * x * pair[0] + pair[1]


def derivatives(x: Any, pair: Any, run: Any = None) -> Any:
    return 3 * x * pair[0] + pair[1]


def twice(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, pair: jax.lax.scan(lambda x, _: (f(x, pair), None), x, length=2)[0]


def test_values_are_of_one_function_and_derivatives_of_the_other() -> None:
    f = by_need(values, derivatives)
    assert f(X, PAIR) == jax.jit(f)(X, PAIR) == jax.jit(jax.checkpoint(f))(X, PAIR) == 71
    assert jax.vmap(f, (0, None))(jnp.full(2, X), PAIR).tolist() == [71, 71]
    assert twice(f)(X, PAIR) == 2 * 71 * 7 + 1
    assert jax.value_and_grad(f, (0, 1))(X, PAIR) == (106, (21, (15, 1)))
    assert jax.jvp(lambda x: f(x, PAIR), [X], [2.0]) == (106, 42)
    assert jax.grad(jax.jit(jax.checkpoint(f)))(X, PAIR) == 21
    assert jax.grad(jax.checkpoint(twice(f)))(X, PAIR) == 21 * 21
    assert jax.vmap(jax.grad(f), (0, None))(jnp.full(2, X), PAIR).tolist() == [21, 21]
    assert jax.grad(f)(X, PAIR, jnp.ones(3, int)) == 21


def test_of_what_is_not_differentiated_no_derivative_is_computed() -> None:
    f = by_need(values, derivatives)
    traced = jax.make_jaxpr(lambda x: jax.jvp(lambda x: f(x, PAIR), [x], [x]))(X)
    # Of x alone: the product twice, for the value and for its change, and one sum.
    names = [equation.primitive.name for equation in traced.eqns]
    assert names == ["mul", "mul", "mul", "mul", "add"]


def test_values_of_one_function_and_the_backward_pass_of_another() -> None:
    f = recomputed(values, derivatives)
    assert jax.value_and_grad(jax.jit(f), (0, 1))(X, PAIR) == (71, (21, (15, 1)))
    assert jax.grad(f)(X, PAIR, jnp.ones(3, int)) == 21


@pytest.mark.parametrize(("operation", "forms"), [("ssd", ssd), ("quasiseparable", quasiseparable)])
def test_every_row_names_a_form(operation: str, forms: Any) -> None:
    for rows in scan_choice.TABLE[operation].values():
        lengths = [row.longest for row in rows]
        assert lengths == sorted(lengths) and lengths[-1] == float("inf")
        for row in rows:
            for choice in row[1:]:
                assert choice.form in forms.FORMS and choice.chunk >= 1


def test_the_choice_goes_by_platform_length_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Choice("a", 1), Choice("b", 2)
    rows = [Row(9, short, long), Row(float("inf"), long, long)]
    monkeypatch.setattr(scan_choice, "TABLE", {"mix": {"cpu": rows, "": [Row(1e9, long, short)]}})
    assert chosen("mix", 9) == (short, long) and chosen("mix", 10) == (long, long)
    assert chosen("mix", 9, chunk=5) == (Choice("a", 5), Choice("b", 5))
    monkeypatch.setattr(scan_choice, "platform", lambda: "gpu")
    assert chosen("mix", 9) == (long, short)


def test_a_kernel_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(ValueError, match="'pallas', which is for a TPU and not for 'cpu'"):
        scan_choice.kernels_run(interpret=False)
    assert scan_choice.kernels_run(interpret=True)
