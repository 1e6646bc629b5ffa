"""The TPU compiler takes the kernel of routed attention, and what it multiplies and moves.

A kernel with n queries in R regions, k routes of m keys, C channels and s bytes of an element reads
the queries, writes as much, and reads k regions of keys and values for every region of queries:
2 s C (n + k m) R. Heads that share 128 lanes are one product, so that 4 m k n C R multiply-adds of
2 are counted once for each of them; a product over fewer channels would take as long.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigr_jax.ops import flops, hlo, hlo_memory, routing
from bigr_jax.ops.collectives import collectives
from bigr_jax.ops.kernels import routed
from bigr_jax.train import topologies

pytest.importorskip("libtpu", reason="the TPU compiler is missing: pip install 'libtpu==0.0.42.*'")

# So many examples that what lies between the kernels has no room in the core's memory.
B, R = 128, 49


def traced(n: int, h: int, k: int, masked: bool = False) -> tuple[Any, routed.Layout]:
    """The program with maps as a layer has them, heads of 32 channels beside each other, and how
    the kernel cuts it.
    """
    maps = jax.ShapeDtypeStruct((B, R, n, h * 32), jnp.bfloat16)
    heads = jax.ShapeDtypeStruct((B, R, n, h, 32), jnp.bfloat16)
    routes = jax.ShapeDtypeStruct((B, R, k), jnp.int32)
    mask = np.arange(R * n).reshape(1, R, n) % 5 > 0 if masked else None

    def run(query: Any, key: Any, value: Any, routes: Any) -> Any:
        arrays = (array.reshape(heads.shape) for array in (query, key, value))
        y = routing.routed_attention(*arrays, routes, key_mask=mask, form="pallas")
        return y.reshape(query.shape)

    cut = routed.layout(routing.Inputs(heads, heads, heads, routes, None, None))
    return jax.jit(run).trace(maps, maps, maps, routes), cut


@pytest.mark.parametrize(
    ("topology", "n", "h", "k", "masked", "record"),
    # The second stage of BiFormer-T, with and without padding, and the third, of regions of 4,
    # which XLA lays out with the examples in the lanes, and copies.
    [
        ("v5e:2x2", 16, 4, 4, False, 1.0),
        ("v5p:2x2x1", 16, 4, 4, True, 1.0),
        ("v5p:2x2x1", 4, 8, 16, False, 1.18),
    ],
)
def test_the_kernel_compiles_and_does_what_is_said(
    topology: str, n: int, h: int, k: int, masked: bool, record: float
) -> None:
    devices = np.array(topologies.tpu_slice(topology)[:1])
    with jax.set_mesh(Mesh(devices, ("data",), axis_types=(AxisType.Auto,))):
        program, cut = traced(n, h, k, masked)
        compiled = program.lower().compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert cut == routed.Layout(h, 4, k, 1)
    multiplied = flops.count(program.jaxpr) / (4 * B * R * n * k * n * h * 32)
    assert multiplied == cut.together
    # No copy of the keys of a region is made: all is read as it comes, a tile of 8 rows at least.
    rows = max(n, 8)
    needed = 2 * 2 * B * R * rows * h * 32 * (1 + k)
    moved = hlo_memory.traffic(hlo.parse(text))
    assert 0.95 * record < moved / needed < 1.05 * record


def test_examples_on_several_devices_need_nothing_of_each_other() -> None:
    devices = np.array(topologies.tpu_slice("v5e:2x2"))
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    maps = jax.ShapeDtypeStruct((8, 14, 14, 4, 32), jnp.bfloat16, sharding=rows)
    for form in ("gather", "walk"):
        run = functools.partial(routing.bilevel_attention, regions=(7, 7), topk=4, form=form)
        with jax.set_mesh(mesh):
            program = jax.jit(run).lower(maps, maps, maps).compile()
        assert not collectives(hlo.parse(program.as_text()))


def test_on_several_devices_and_for_large_regions_the_walk_is_taken() -> None:
    devices = np.array(topologies.tpu_slice("v5e:2x2"))
    with jax.set_mesh(Mesh(devices, ("data",), axis_types=(AxisType.Auto,))):
        assert "pallas_call" not in str(traced(16, 4, 4)[0].jaxpr)
    with jax.set_mesh(Mesh(devices[:1], ("data",), axis_types=(AxisType.Auto,))):
        assert "pallas_call" in str(traced(16, 4, 4)[0].jaxpr)
        assert "pallas_call" not in str(traced(512, 4, 4)[0].jaxpr)
