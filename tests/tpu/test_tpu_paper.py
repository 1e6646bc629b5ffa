"""The published sizes of BiGR on a slice of 256 chips: `make test-tpu`, minutes each."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler is missing: pip install 'libtpu==0.0.42.*'")

golden = pytest.importorskip("golden")

pytestmark = pytest.mark.skipif(
    os.environ.get("BIGR_TPU_LARGE") != "1", reason="minutes each: make test-tpu"
)

# Parameters in 8 parts, of neighbours; only gradients go further. What a chip holds of them is then
# small beside its activations, and of a width of 1024 it holds 128 columns, which fill the lanes of
# a TPU: in 16 parts half of every tile would be padding.
MESH = {"data": -1, "fsdp": 8}
VARIANTS = ("paper", "paper_xl", "paper_xxl")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x8")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_generator_fits_as_on_record(variant: str, topology: str) -> None:
    spec = f"bigr:{variant}"
    run = golden.make(spec, topology, MESH, "generator")
    case = golden.Case(spec, topology, MESH, "generator")
    found = golden.check(run, case)
    whole = sum(x.size * x.dtype.itemsize for x in leaves(run))
    assert found["memory"]["parameters"] <= (1 / MESH["fsdp"] + 0.02) * whole


def test_sampler_fits_as_on_record() -> None:
    run = golden.make("bigr:paper", "v5e:16x16", MESH, "generator")
    case = golden.Case("bigr:paper", "v5e:16x16", MESH, "generator", "sampler")
    found = golden.check(run, case)
    # Every chip draws one image, and has no more of them in memory than that takes.
    assert found["memory"]["temporaries"] < 2**30 / 8


def leaves(run: golden.Run) -> list:
    import jax

    return jax.tree.leaves(run.plan("generator").abstract.variables)
