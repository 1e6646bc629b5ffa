from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.train import schedules

TOTAL, WARMUP, LR, END = 1000, 100, 0.02, 0.1


def section(**changes):
    fields = {"lr": LR, "schedule": "cosine", "warmup": str(WARMUP), "end_lr": END, "cooldown": "0"}
    return SimpleNamespace(**{**fields, **changes})


def make(total=TOTAL, **changes):
    return schedules.make(section(**changes), total, lambda text, key: int(text), "opt")


def oracle(name, step, warmup, total=TOTAL):
    if step < warmup:
        return LR * step / warmup
    done = min((step - warmup) / (total - warmup), 1.0)
    return (
        LR
        * {
            "constant": 1.0,
            "linear": 1 - done * (1 - END),
            "cosine": END + (1 - END) * (1 + math.cos(math.pi * done)) / 2,
            "rsqrt": max(END, math.sqrt(max(warmup, 1) / max(step, 1))),
        }[name]
    )


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
def test_values_from_the_start_to_beyond_the_end(name, warmup):
    schedule = make(schedule=name, warmup=str(warmup))
    for step in (0, 1, warmup // 2, warmup, warmup + 1, TOTAL // 2, TOTAL - 1, TOTAL, TOTAL + 50):
        assert float(schedule(step)) == pytest.approx(oracle(name, step, warmup), rel=2e-6), step


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(schedules.NAMES), st.integers(0, 49), st.integers(50, 400))
def test_no_schedule_leaves_its_bounds_or_rises_after_the_warmup(name, warmup, total):
    schedule = make(total, schedule=name, warmup=str(warmup))
    steps = np.linspace(0, total + 10, 16).astype(int)
    values = np.broadcast_to(schedule(steps), steps.shape)
    assert np.all(values >= 0) and np.all(values <= LR * (1 + 1e-6))
    assert np.all(np.diff(values[steps >= warmup]) <= 1e-9)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warmup": "1000"}, "opt.warmup='1000'"),
        ({"warmup": "-1"}, "opt.warmup"),
        (
            {"cooldown": "900"},
            "opt.cooldown='900' is 900 steps; legal: from 0 to fewer than the 900",
        ),
        ({"cooldown": "-1"}, "opt.cooldown"),
        ({"lr": -1.0}, "opt.lr=-1.0"),
        ({"end_lr": 1.5}, "opt.end_lr=1.5"),
    ],
)
def test_values_that_make_no_schedule(changes, part):
    with pytest.raises(UserError, match=part):
        make(**changes)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_cooldown_keeps_the_last_rate(name):
    schedule, shorter = make(schedule=name, cooldown="300"), make(TOTAL - 300, schedule=name)
    steps = np.arange(0, TOTAL, 50)
    np.testing.assert_array_equal(schedule(steps), shorter(steps))
    np.testing.assert_allclose(schedule(np.arange(TOTAL - 300, TOTAL)), LR * END, rtol=1e-6)


def test_resolve_is_told_the_key():
    keys = []
    schedules.make(section(warmup="5%"), TOTAL, lambda *given: keys.append(given) or 7, "a.b")
    assert keys == [("5%", "a.b.warmup"), ("0", "a.b.cooldown")]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4, unique=True), st.integers(0, 1))
def test_steps_fall_by_a_factor_after_each_time_down_to_the_end(times, warm):
    times = sorted(warm + time for time in times)
    schedule = make(
        schedule=f"steps:0.5:{', '.join(map(str, times))}", warmup=str(warm), end_lr=0.2
    )
    for step in (warm, *times, *(time - 1 for time in times), TOTAL):
        # As PyTorch's MultiStepLR: from the step of the time on.
        falls = sum(step >= time for time in times)
        wanted = max(0.5**falls, 0.2) * LR if step >= warm else 0.0
        assert float(schedule(step)) == pytest.approx(wanted, rel=1e-5), step


def test_restarts_begin_anew_after_every_period():
    schedule = make(schedule="restarts:40", warmup="10")
    for step in (10, 11, 30, 49, 50, 51, 89, 90, 995):
        done = (step - 10) % 40 / 40
        wanted = LR * (END + (1 - END) * (1 + math.cos(math.pi * done)) / 2)
        assert float(schedule(step)) == pytest.approx(wanted, rel=1e-5), step


@pytest.mark.parametrize(
    "name", ["steps", "steps:", "steps:0.1", "steps:0.1:", "steps:2:10", "steps:x:10",
             "steps:0.1:20,10", "steps:0.1:50", "restarts", "restarts:", "restarts:0", "cosine:3"]
)  # fmt: skip
def test_forms_that_make_no_schedule_are_named(name):
    with pytest.raises(UserError, match=f"opt.schedule='{name}'"):
        make(schedule=name, warmup="50")
