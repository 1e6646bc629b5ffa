from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bigr_jax.ops import chips
from bigr_jax.ops.collectives import Collective
from bigr_jax.ops.hlo_memory import Kept
from bigr_jax.train import plan_report
from bigr_jax.train.advice import Choice
from bigr_jax.train.planning import Figures, with_useful

GIB = 1 << 30
MESH: Any = SimpleNamespace(size=4, shape={"data": 4, "fsdp": 1, "model": 1, "seq": 1})


def figures(**changes: Any) -> Figures:
    collectives = [
        Collective(
            "all-reduce", GIB, 4, 2, "jit(step)/a/b/c/d/dot", "/x/bigr_jax/nn/a.py:3", "f32[8]{0}"
        ),
        Collective("all-gather", 1 << 20, 4, 1, "", "", "f32[4]{0}"),
        Collective("all-reduce", 8, 4, 1, "", "", "f32[2]{0}"),
    ]
    found = Figures(
        memory={"parameters": 2 * GIB, "optimizer": 4 * GIB, "activations": 3 * GIB},
        limit=15.75 * GIB,
        operations=8_000_000_000_000,
        useful=8_000_000_000_000,
        traffic=GIB,
        collectives=collectives,
        minimum=1.5 * GIB,
        arrays=[Kept("bf16[4,8]{1,0}", GIB, "jit(step)/net/dot", "/x/bigr_jax/nn/b.py:7")],
        bound=chips.Bound(0.01, 0.02, 0.04, 0.01),
        seconds=1.0,
    )
    return found._replace(**changes)


def test_a_program_that_fits() -> None:
    text = plan_report.program("train step", with_useful(figures(), 6_000_000_000_000), MESH)
    for line in (
        "  total        9.00 GiB  of 15.75 GiB: fits, 6.75 GiB to spare",
        "    1.00 GiB  bf16[4,8]  jit(step)/net/dot nn/b.py:7",
        "  8 TFLOP, 2 on a chip, 25% of it repeated by remat",
        "  sent by a chip           3.00 GiB  2.00 of the least for parameters and gradients, "
        "1.50 GiB",
        "    3.00 GiB  2 x all-reduce over 4 of f32[8]  b/c/d/dot nn/a.py:3",
        "  at least 40 ms: arithmetic 10 ms, memory 20 ms, links 40 ms; MFU at most 19%",
    ):
        assert line in text.splitlines(), f"{line!r} is not in\n{text}"


def test_a_program_that_does_not() -> None:
    text = plan_report.program("train step", figures(limit=8 * GIB, bound=None), MESH)
    assert "of 8.00 GiB: does not fit, 1.00 GiB too much" in text
    assert "MFU" not in text


def test_one_device_sends_nothing() -> None:
    assert "nothing is sent" in plan_report.program("x", figures(collectives=[]), MESH)


def test_kinds_are_summed_the_most_first() -> None:
    found = plan_report.by_kind(figures().collectives)
    assert list(found) == ["all-reduce", "all-gather"]
    assert found["all-reduce"] == {"times": 3, "moved": 3 * GIB + 12}


def test_what_parts_would_save() -> None:
    assert plan_report.saved_by_fsdp(figures(), MESH) == (
        "every chip holds all 6.00 GiB of parameters, optimizer and average; mesh.fsdp=4 would "
        "leave 1.50 GiB"
    )
    parted: Any = SimpleNamespace(size=4, shape={"fsdp": 4})
    assert plan_report.saved_by_fsdp(figures(), parted) == ""


def test_choices_are_a_table() -> None:
    bound = chips.Bound(0.01, 0.02, 0.04, 0.01)
    rows = [
        Choice({"model.remat": "dots", "b": "8"}, 8, 2 * GIB, True, bound, True),
        Choice({"model.remat": "none", "b": "16"}, 16, 20 * GIB, False, None, False),
    ]
    lines = plan_report.choices(rows).splitlines()
    assert lines[1].split() == ["model.remat=dots", "b=8", "2.00", "GiB", "fits", "25%", "links"]
    assert lines[2].endswith("20.00 GiB  too large            ?             predicted")


def test_numbers_for_json() -> None:
    found = plan_report.record(figures())
    assert found["total"] == 9 * GIB
    assert found["fits"] is True
    assert found["bound"]["mfu"] == 0.25
