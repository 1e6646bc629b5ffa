"""What is read out of a compiled program's text, against programs whose collectives are known.

As a program, `python test_hlo.py`, this file compiles a few for the devices that there are and
prints what was read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigr_jax.ops import hlo, hlo_memory
from bigr_jax.ops.collectives import collectives

ROWS, WIDTH, LAYERS = 16, 32, 3

TEXT = (Path(__file__).parent / "collectives.hlo.txt").read_text("utf-8")


def test_collectives_of_a_text() -> None:
    found = {item.kind: item for item in collectives(hlo.parse(TEXT))}
    seen = {kind: (item.size, item.group, item.times) for kind, item in found.items()}
    assert seen == {
        # Both fusions are the one collective of channel 7.
        "all-gather": (32, 8, 1),
        "reduce-scatter": (96, 4, 1),
        # From 1 to 7 by steps of 2, five times.
        "collective-permute": (32, 2, 15),
        "all-reduce": (4, 2, 1),
        # No groups: all devices.
        "all-to-all": (64, 8, 1),
    }
    assert len(collectives(hlo.parse(TEXT))) == len(seen)
    moved = {kind: item.moved for kind, item in found.items()}
    assert moved == {
        "all-gather": 7 * 32,
        "reduce-scatter": 0.75 * 96,
        "collective-permute": 15 * 32,
        "all-reduce": 4,
        "all-to-all": 56,
    }
    assert found["all-gather"].where == "jit(f)/jvp(net)/dot nn/linear.py:51"


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("f32[8,128]{1,0}", 4096),
        ("pred[3]{0}", 3),
        ("bf16[]", 2),
        ("(s4[8]{0}, u64[2]{0})", 20),
        ("f8e4m3fn[2,2]{1,0}", 4),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape(shape: str, wanted: int) -> None:
    assert hlo.nbytes(shape) == wanted


def test_tiles_round_up_and_the_memory_of_the_core_is_apart() -> None:
    text = (
        "HloModule jit_f\n\nENTRY %main (a: f32[3,5], b: f32[3,5]) -> f32[3,5] {\n"
        "  %a = f32[3,5]{1,0:T(8,128)} parameter(0)\n"
        "  %b = f32[3,5]{1,0:T(8,128)S(1)} parameter(1)\n"
        "  ROOT %sum = f32[3,5]{0,1:T(8,128)} add(%a, %b)\n}\n"
    )
    tile = 8 * 128 * 4
    program = hlo.parse(text)
    assert hlo_memory.traffic(program) == 2 * tile
    assert [item.size for item in hlo_memory.largest(program, 5)] == [tile]


def test_traffic_counts_slices_not_what_they_are_cut_from() -> None:
    text = """HloModule jit_f

%cut (p: f32[24,64], i: s32[]) -> f32[64] {
  %p = f32[24,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = s32[] constant(0)
  %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %c), dynamic_slice_sizes={1,64}
  ROOT %b = f32[64]{0} bitcast(%s)
}

%deep (p: f32[24,64], i: s32[]) -> f32[64] {
  %p = f32[24,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %x = f32[64]{0} fusion(%p, %i), kind=kLoop, calls=%cut
}

%put (p: f32[24,64], x: f32[64], i: s32[]) -> f32[24,64] {
  %p = f32[24,64]{1,0} parameter(0)
  %x = f32[64]{0} parameter(1)
  %i = s32[] parameter(2)
  %c = s32[] constant(0)
  %b = f32[1,64]{1,0} bitcast(%x)
  ROOT %u = f32[24,64]{1,0} dynamic-update-slice(%p, %b, %i, %c)
}

ENTRY %main (p: f32[24,64], i: s32[]) -> f32[24,64] {
  %p = f32[24,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[64]{0} fusion(%p, %i), kind=kLoop, calls=%deep
  ROOT %q = f32[24,64]{1,0} fusion(%p, %x, %i), kind=kLoop, calls=%put
}
"""
    # Read a row and write it, twice; and the index, 4 bytes, each time.
    assert hlo_memory.traffic(hlo.parse(text)) == 2 * (256 + 256 + 4)


def loss(weights: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> tuple[Any, None]:
        return jnp.tanh(x @ w), None

    return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()


def read(compiled: Any) -> dict[str, Any]:
    program = hlo.parse(compiled.as_text())
    found = [(i.kind, i.size, i.group, i.times) for i in collectives(program)]
    return {"collectives": found, "kept": [(i.shape, i.size) for i in hlo_memory.kept(program)]}


def main() -> None:
    """Prints what was read of programs on a mesh of (2, 4) devices."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def shaped(shape: tuple[int, ...], *axes: Any) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    weights = shaped((LAYERS, WIDTH, WIDTH), None, "fsdp", None)
    x, parts = shaped((ROWS, WIDTH), ("data", "fsdp"), None), NamedSharding(mesh, PartitionSpec())
    placed = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    with jax.set_mesh(mesh):
        summed = jax.jit(jnp.sum, out_shardings=parts).lower(x)
        grads = jax.jit(jax.grad(loss), out_shardings=placed).lower(weights, x)
    print(json.dumps({"summed": read(summed.compile()), "grads": read(grads.compile())}))


@pytest.fixture(scope="module")
def compiled(run_python: Any) -> dict[str, Any]:
    done = run_python([__file__], devices=8)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sum_over_all_devices_is_one_scalar_reduced(compiled: Any) -> None:
    total = 0.0
    for kind, size, group, times in compiled["summed"]["collectives"]:
        assert (kind, times) == ("all-reduce", 1)
        total += 2 * (group - 1) / group * size
    # 4 bytes over 8 devices at once, or over the one axis and then over the other.
    assert total == pytest.approx(2 * 7 / 8 * 4) or total == pytest.approx(2 * (1 / 2 + 3 / 4) * 4)


def test_a_loop_gathers_each_layer_forth_and_back(compiled: Any) -> None:
    found = compiled["grads"]["collectives"]
    part = WIDTH * WIDTH * 4 // 4
    gathered = [(size, group, times) for kind, size, group, times in found if kind == "all-gather"]
    assert gathered == [(part, 4, LAYERS)] * 2
    reduced = [item for item in found if item[0] in ("all-reduce", "reduce-scatter")]
    # The gradient of every layer is summed within the loop, over 4 and over 2 devices or over all.
    assert reduced
    assert all(times in (1, LAYERS) for *_, times in reduced)
    assert sum(size * times for _, size, _, times in reduced) >= LAYERS * part


def test_what_the_layers_give_is_kept_for_the_way_back(compiled: Any) -> None:
    kept = [shape.partition("{")[0] for shape, _ in compiled["grads"]["kept"]]
    assert f"f32[{LAYERS},{ROWS // 8},{WIDTH}]" in kept
    assert all(size < LAYERS * WIDTH * WIDTH * 4 for _, size in compiled["grads"]["kept"])


if __name__ == "__main__":
    main()
