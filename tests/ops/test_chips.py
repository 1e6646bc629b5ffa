from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bigr_jax.ops import chips


def device(kind: str) -> Any:
    return SimpleNamespace(device_kind=kind, platform="tpu")


@pytest.mark.parametrize(
    ("kind", "gib"),
    [("TPU v5 lite", 15.75), ("TPU v5", 95.74), ("TPU v6 lite", 31.25), ("TPU v4", 31.75)],
)
def test_memory_of_a_chip(kind: str, gib: float) -> None:
    found = chips.chip_of(device(kind))
    assert found is not None
    assert found.memory == gib * chips.GIB


def test_every_chip_of_the_table_has_a_peak() -> None:
    for name in chips.CHIPS:
        bound = chips.bound(device(name), 1e12, 1e12, 0, 0)
        assert bound is not None
        assert bound.mfu == 1


def test_the_slowest_of_three_bounds_the_utilisation() -> None:
    v5e = device("TPU v5 lite")
    # 1 s of arithmetic, of which a fifth is repeated; 2 s of memory; 4 s of links.
    bound = chips.bound(v5e, 197e12, 0.8 * 197e12, 2 * 819e9, 4 * 200e9)
    assert bound is not None
    assert (bound.arithmetic, bound.memory, bound.links) == (1, 2, 4)
    assert (bound.seconds, bound.limit) == (4, "links")
    assert bound.mfu == pytest.approx(0.2)
    alone = chips.bound(v5e, 197e12, 0.8 * 197e12, 819e9 / 2, 0)
    assert alone is not None
    assert (alone.limit, alone.mfu) == ("arithmetic", pytest.approx(0.8))


def test_nothing_is_said_of_an_unknown_device() -> None:
    assert chips.bound(device("Abacus"), 1, 1, 1, 1) is None
