"""Durations in every unit, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigr_jax import durations
from bigr_jax.errors import UserError


def steps(text: Any, **changes: Any) -> int:
    known = {"key": "train.duration", "batch_size": 64, "examples": 1000, "total": 500, **changes}
    return durations.steps(text, **known)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000 steps", 3000),
        ("1 step", 1),
        ("0 steps", 0),
        (7, 7),
        (0, 0),
        ("40 epochs", 625),
        ("1 epoch", 16),
        ("0.5 epochs", 8),
        ("1_000_000 examples", 15625),
        ("1 example", 1),
        ("65 examples", 2),
        ("10%", 50),
        ("0.1 %", 1),
        ("100%", 500),
        (" 25 % ", 125),
    ],
)
def test_every_unit(text: object, expected: int) -> None:
    assert steps(text) == expected


@pytest.mark.parametrize(
    "text", ["", "10", "ten steps", "-3 steps", "3 hours", "1e3 steps", "10%%", -1, True, 2.0, None]
)
def test_anything_else_is_refused_with_the_key_the_value_and_the_legal_forms(text: object) -> None:
    with pytest.raises(UserError) as caught:
        steps(text)
    message = str(caught.value)
    assert message.startswith(f"train.duration={text!r} is not a duration")
    assert "; legal: " in message
    for form in ("'3000 steps'", "'40 epochs'", "'1_000_000 examples'", "'10%'"):
        assert form in message
    assert "\n" not in message


def test_a_percentage_needs_a_whole_and_is_at_most_that() -> None:
    with pytest.raises(UserError, match=r"train\.duration='10%': there is no whole"):
        steps("10%", total=None)
    with pytest.raises(UserError, match="'101%' is more than the whole"):
        steps("101%")


@pytest.mark.parametrize("text", ["2.5 steps", "0.1 examples"])
def test_steps_and_examples_are_whole(text: str) -> None:
    with pytest.raises(UserError, match="is not a whole number of"):
        steps(text)


@given(
    tenths=st.integers(0, 10_000),
    batch_size=st.integers(1, 4096),
    examples=st.integers(1, 10**7),
)
def test_epochs_cover_the_examples_and_no_step_more(
    tenths: int, batch_size: int, examples: int
) -> None:
    found = steps(f"{tenths / 10} epochs", batch_size=batch_size, examples=examples)
    seen, wanted = found * batch_size, Fraction(tenths, 10) * examples
    assert seen >= wanted > seen - batch_size or found == wanted == 0


@given(percent=st.integers(0, 100), total=st.integers(0, 10**6))
def test_percentages_are_exact(percent: int, total: int) -> None:
    assert steps(f"{percent}%", total=total) == -(-percent * total // 100)
