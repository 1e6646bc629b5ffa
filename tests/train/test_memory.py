"""For want of memory: what is large, and what would fit."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bigr_jax.api import TrainState
from bigr_jax.errors import UserError
from bigr_jax.train import memory, sharding, topologies
from bigr_jax.train.run import Run

GIB = 1 << 30


@pytest.fixture
def step() -> memory.Step:
    """A stage that holds 3 GiB of weights and 1 GiB of batch, on one simulated device."""
    mesh = sharding.make_mesh({"data": 1}, jax.devices("cpu")[:1])

    def shaped(gib: float, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        count = int(gib * GIB) // jnp.dtype(dtype).itemsize
        where = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct((count,), dtype, sharding=where)

    state = TrainState(shaped(0), {"params": {"w": shaped(1)}}, {"mu": shaped(2)}, None)
    return memory.Step("generator", 1024, state, {"image": shaped(1, jnp.uint8)}, {}, mesh)


def test_bytes_on_a_device() -> None:
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    where = NamedSharding(mesh, PartitionSpec("fsdp"))
    leaf = jax.ShapeDtypeStruct((8, 3), jnp.bfloat16, sharding=where)
    assert memory.shard_bytes({"a": leaf, "b": jnp.zeros((5,), jnp.int8)}) == 12 + 5


def test_a_tpus_words(step: memory.Step) -> None:
    error = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (28.00G) exceeds available HBM (15.75G)."
    )
    lines = memory.explain_out_of_memory(step, error).splitlines()
    assert lines[0] == (
        "stage 'generator' with batch_size=1024 is out of memory: it takes 32.00 GiB of the "
        "15.75 GiB that a cpu has"
    )
    assert lines[1].split(", ")[:2] == [
        "  activations and temporaries 28.00 GiB",
        "optimizer 2.00 GiB",
    ]
    assert lines[2].startswith("  the largest arrays: 2.00 GiB state/opt_state/mu; 1.00 GiB ")
    # (0.95 * 15.75 - 3) / 29 of 1024.
    assert "batch_size=422 fits" in lines[3]
    assert "accumulate=4" in lines[3]
    assert len(lines) <= 6


def test_a_list_of_arrays_is_taken_over(step: memory.Step) -> None:
    error = (
        "RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm. Exceeded hbm capacity by 4.25G.\n\n"
        '  1. Size: 9.00G\n     Operator: op_name="jit(step)/dot" source_file="a.py"\n'
        "     Shape: bf16[64,257,4096]{2,1,0}\n     Unpadded size: 8.00G\n"
        "  2. Size: 2.50M\n     Shape: f32[8]{0}\n"
    )
    text = memory.explain_out_of_memory(step, error)
    assert "it takes 20.00 GiB of the 15.75 GiB" in text
    assert "9.00G bf16[64,257,4096] jit(step)/dot; 2.50M f32[8]" in text


def test_where_the_limit_is_not_known_half_is_proposed(step: memory.Step) -> None:
    error = "RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes."
    text = memory.explain_out_of_memory(step._replace(whole_batch=True), error)
    assert "activations and temporaries 4.00 GiB" in text
    assert "batch_size=512 fits\n" in text
    assert "accumulate" not in text


def test_weights_that_are_too_much_alone_leave_no_batch(step: memory.Step) -> None:
    error = "RESOURCE_EXHAUSTED: HLO temporaries (1.00G) exceeds available HBM (2.00G)."
    text = memory.explain_out_of_memory(step, error)
    assert "batch_size=1024 is out" in text
    assert " fits" not in text


def test_a_compiled_program_tells_its_own_arrays(step: memory.Step) -> None:
    compiled = jax.jit(lambda x: jnp.outer(x, x) @ x).lower(jnp.zeros(64)).compile()
    text = memory.explain_out_of_memory(step, "RESOURCE_EXHAUSTED", compiled)
    assert "f32[64" in text.splitlines()[2]


def test_other_errors_pass(step: memory.Step) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"), memory.explained(step):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_training_says_what_is_large(
    tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    said = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")

    def fails(*args: Any) -> Any:
        raise said

    place = jax.stages.Lowered if when == "compiling" else jax.stages.Compiled
    name = "compile" if when == "compiling" else "__call__"
    run = Run(tiny(), str(tmp_path))
    with monkeypatch.context() as patch:
        if when == "compiling":
            patch.setattr("bigr_jax.train.loop.compile_step", fails)
        else:
            patch.setattr(place, name, fails)
        with pytest.raises(UserError) as caught:
            run.train("first")
    text = str(caught.value)
    assert text.startswith("stage 'first' with batch_size=8 is out of memory: it takes ")
    assert "parameters" in text
    assert "--config.train.first.batch_size=4 fits" in text
    assert caught.value.__cause__ is said


def test_the_tpu_compilers_own_refusal_is_understood(step: memory.Step) -> None:
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh({"data": -1}, topologies.tpu_slice("v5e:2x2"))
    where = NamedSharding(mesh, PartitionSpec("data"))
    rows = jax.ShapeDtypeStruct((1 << 18, 1 << 18), jnp.float32, sharding=where)
    with jax.set_mesh(mesh), pytest.raises(UserError) as caught:
        lowered = jax.jit(lambda x: (jnp.tanh(x @ x) @ x.T).sum()).lower(rows)
        with memory.explained(step._replace(mesh=mesh)):
            lowered.compile()
    text = str(caught.value)
    assert "GiB of the 15.75 GiB that a TPU v5 lite has" in text
    assert "activations and temporaries" in text


def test_the_limit_of_a_chip_that_is_not_here() -> None:
    pytest.importorskip("libtpu")
    assert memory.memory_limit(topologies.tpu_slice("v5p:2x2x1")[0]) == 95.74 * GIB


@pytest.fixture(autouse=True)
def _no_accelerator() -> None:
    assert os.environ["JAX_PLATFORMS"] == "cpu"
