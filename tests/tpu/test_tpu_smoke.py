"""The TPU compiler takes every stage and sampler of every experiment, as small as they come."""

from __future__ import annotations

from typing import Any

import pytest

from bigr_jax import registry

pytest.importorskip("libtpu", reason="the TPU compiler is missing: pip install 'libtpu==0.0.42.*'")

golden = pytest.importorskip("golden")

TOPOLOGY, MESH = "v5e:2x4", {"data": 2, "fsdp": 4}


@pytest.mark.parametrize("slug", registry.names())
def test_every_stage_and_sampler_compiles_for_a_tpu(slug: str) -> None:
    run = golden.make(f"{slug}:smoke", TOPOLOGY, MESH)
    for stage, method in run.methods.items():
        case = golden.Case(f"{slug}:smoke", TOPOLOGY, MESH, stage)
        found = golden.check(run, case)
        # Parameters in four parts are gathered, and gradients over eight devices are summed.
        assert {"all-gather", "all-reduce"} <= found["moved"].keys()
        if method.sample is not None:
            golden.check(run, case._replace(what="sampler"))


def test_what_has_drifted_is_named() -> None:
    before: dict[str, Any] = {
        "memory": {"activations": 100_000, "code": 50_000, "batch": 10},
        "moved": {"all-gather": 1_000_000},
    }
    now = {
        "memory": {"activations": 106_000, "code": 52_000, "batch": 4000},
        "moved": {"all-gather": 1_040_000, "all-to-all": 5000},
    }
    assert golden.drifted(before, before) == []
    assert golden.drifted(now, before) == [
        "memory activations was 100,000 bytes, is 106,000",
        "moved all-to-all was 0 bytes, is 5,000",
    ]
