"""Rows of a batch lie over fsdp first, then data: XLA's partitioner then gives networks without any
constraint the gradient that they have on one device.

With data first it does not, where there is a third axis: the cotangents of a device's rows are
taken for those of another's, in jaxlib 0.10 to 0.12, and nothing says so.
"""

from __future__ import annotations

from typing import Any

import pytest

from bigr_jax.train import sharding

GRADIENTS = """
import json, sys, jax, numpy as np
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from bigr_jax.train import sharding

mesh = sharding.make_mesh(json.loads(sys.argv[1]))
random = np.random.default_rng(0)
draw = lambda *shape: random.normal(size=shape).astype(np.float32)
weights = [draw(32, 32) / 4 for _ in range(3)]
x, seen = draw(32, 32), draw(32, 32)

def loss(weights, x, seen):
    for kernel in weights:
        x = jnp.tanh(x @ kernel)
    return (x * seen).sum()

gradient = jax.jit(jax.grad(loss))
one, rows = gradient(weights, x, seen), sharding.batch_sharding(mesh)
for names in (("embed", "mlp"), ("mlp", "embed"), ("embed", None), (None, "mlp")):
    axes = [sharding.RULES.get(name) for name in names]
    placed = jax.device_put(weights, NamedSharding(mesh, PartitionSpec(*axes)))
    many = gradient(placed, *jax.device_put((x, seen), rows))
    for left, right in zip(one, many, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 * np.abs(left).max())
"""


def test_a_batch_is_cut_as_parameters_are() -> None:
    assert sharding.RULES["batch"] == sharding.RULES["examples"] == ("fsdp", "data")
    assert sharding.RULES["embed"] == "fsdp"


@pytest.mark.parametrize(
    "sizes",
    [
        '{"data": 2, "fsdp": 2, "model": 2}',
        '{"data": 4, "fsdp": 2, "model": 2}',
        '{"data": 2, "fsdp": 4, "model": 2}',
    ],
)
def test_a_network_without_constraints_has_its_gradient(run_python: Any, sizes: str) -> None:
    done = run_python(["-c", GRADIENTS, sizes], env={"JAX_NUM_CPU_DEVICES": count(sizes)})
    assert done.returncode == 0, done.stderr


def count(sizes: str) -> str:
    return "16" if "4" in sizes else "8"
