from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from bigr_jax.train import overview


def box(shape, names, dtype=jnp.float32):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, dtype), names)


BOXED = {
    "params": {
        "layers": {"kernel": box((12, 1024, 4096), ("layers", "embed", "mlp"))},
        "scale": jax.ShapeDtypeStruct((1024,), jnp.bfloat16),
    },
    "batch_stats": {"count": jax.ShapeDtypeStruct((), jnp.int32)},
}


def test_a_row_per_variable_and_totals():
    assert overview.table(BOXED) == (
        "parameter            |            shape | dtype    |      count | names\n"
        "---------------------+------------------+----------+------------+-------------------\n"
        "batch_stats/count    |           scalar | int32    |          1 |\n"
        "params/layers/kernel | 12 x 1024 x 4096 | float32  | 50,331,648 | layers, embed, mlp\n"
        "params/scale         |             1024 | bfloat16 |      1,024 |\n"
        "\n"
        "batch_stats: 1 in 1 arrays, 4 B\n"
        "params: 50,332,672 in 2 arrays, 192 MiB\n"
        "total: 50,332,673 in 3 arrays, 192 MiB"
    )


def test_placements_name_the_axes_and_the_share_of_a_device():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "params": {
            "layers": {"kernel": PartitionSpec(None, "fsdp", None)},
            "scale": PartitionSpec(("data", "fsdp")),
        },
        "batch_stats": {"count": PartitionSpec()},
    }
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    lines = overview.table(BOXED, places).splitlines()
    assert lines[0].endswith("| placement        | per device")
    assert [[cell.strip() for cell in line.split("|")[-2:]] for line in lines[2:5]] == [
        ["whole", "4 B"],
        ["(-, fsdp, -) 1/4", "48 MiB"],
        ["(data+fsdp) 1/8", "256 B"],
    ]
    assert lines[-3:] == [
        "batch_stats: 1 in 1 arrays, 4 B, 4 B per device",
        "params: 50,332,672 in 2 arrays, 192 MiB, 48 MiB per device",
        "total: 50,332,673 in 3 arrays, 192 MiB, 48 MiB per device",
    ]


def test_arrays_without_boxes_or_shardings():
    text = overview.table({"params": {"w": jnp.zeros((2, 0))}})
    lines = text.splitlines()
    assert lines[0] == "parameter | shape | dtype   | count"
    assert lines[2] == "params/w  | 2 x 0 | float32 |     0"
    assert lines[-1] == "params: 0 in 1 arrays, 0 B"


def test_placements_of_real_arrays():
    tree = {"w": jnp.zeros((2, 2))}
    text = overview.table(tree, jax.tree.map(lambda x: x.sharding, tree))
    assert text.splitlines()[2].endswith("| whole     |       16 B")
