"""The TPU compiler takes the kernels, and what they multiply and move stands beside what is needed.

Per token and head, with P channels, N of the state, chunks of Q, G groups of H heads and s bytes of
an element, one direction multiplies 2Q(N G/H + P) + 4NP + 2NP/Q and moves s(2P + 2N G/H) + 4 at
least; both together 2Q(2N G/H + P) + 8NP + 4NP/Q, and s(2P + 4N G/H) + 8 if all were read once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from bigr_jax.ops import flops, hlo, hlo_memory
from bigr_jax.ops.quasiseparable import Direction, quasiseparable
from bigr_jax.ops.ssd import ssd
from bigr_jax.train import topologies

pytest.importorskip("libtpu", reason="the TPU compiler is missing: pip install 'libtpu==0.0.42.*'")

# So many examples that what lies between the kernels has no room in the core's memory.
B, LENGTH, H, P, N, Q = 32, 4096, 12, 128, 128, 256
TOKENS = B * LENGTH * H

MULTIPLIED = {
    "ssd": 2 * Q * (N / H + P) + 4 * N * P + 2 * N * P / Q,
    "quasiseparable": 2 * Q * (2 * N / H + P) + 8 * N * P + 4 * N * P / Q,
}
NEEDED = {"ssd": 2 * (2 * P + 2 * N / H) + 4, "quasiseparable": 2 * (2 * P + 4 * N / H) + 8}


def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def traced(operation: str) -> Any:
    """The program with x as a layer has it, its heads beside each other."""
    rows, pairs = shape(B, LENGTH, H, dtype=jnp.float32), shape(B, LENGTH, 1, N)
    x, A, way = shape(B, LENGTH, H * P), shape(H, dtype=jnp.float32), Direction(rows, pairs, pairs)

    def one(x: Any, A: Any, way: Direction) -> Any:
        heads = x.reshape(B, LENGTH, H, P)
        return ssd(heads, way.dt, A, way.B, way.C, form="pallas", chunk=Q).y.reshape(x.shape)

    def both(x: Any, A: Any, f: Direction, k: Direction, delta: Any) -> Any:
        heads = x.reshape(B, LENGTH, H, P)
        return quasiseparable(heads, A, f, k, delta, form="pallas", chunk=Q).reshape(x.shape)

    if operation == "ssd":
        return jax.jit(one).trace(x, A, way)
    return jax.jit(both).trace(x, A, way, way, rows)


@pytest.mark.parametrize(
    ("topology", "operation", "kernels", "record"),
    # How many times what is needed was moved when last looked at. Both directions read x twice, and
    # write and read the states at the borders of chunks; a v5p keeps less in the core's memory.
    # The XLA form "streamed" moves 11 times on a v5e, with 24 heads of 64 channels.
    [
        ("v5e:2x2", "ssd", 1, 1.05),
        ("v5e:2x2", "quasiseparable", 2, 2.02),
        ("v5p:2x2x1", "quasiseparable", 2, 2.96),
    ],
)
def test_a_kernel_compiles_and_does_little_more_than_is_needed(
    topology: str, operation: str, kernels: int, record: float
) -> None:
    devices = np.array(topologies.tpu_slice(topology)[:1])
    with jax.set_mesh(Mesh(devices, ("data",), axis_types=(AxisType.Auto,))):
        program = traced(operation)
        compiled = program.lower().compile()
    parsed = hlo.parse(compiled.as_text())
    calls = [
        line
        for lines in parsed.computations.values()
        for line in lines.values()
        if line.opcode == "custom-call" and "tpu_custom_call" in line.rest
    ]
    assert len(calls) == kernels
    multiplied = flops.count(program.jaxpr) / TOKENS / MULTIPLIED[operation]
    moved = hlo_memory.traffic(parsed) / TOKENS / NEEDED[operation]
    assert 0.95 < multiplied < 1.01
    assert 0.95 * record < moved < 1.05 * record


def test_on_several_devices_that_are_not_told_apart_the_xla_form_is_taken() -> None:
    devices = np.array(topologies.tpu_slice("v5e:2x2"))
    with jax.set_mesh(Mesh(devices, ("data",), axis_types=(AxisType.Auto,))):
        assert "pallas_call" not in str(traced("quasiseparable").jaxpr)
