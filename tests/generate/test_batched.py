"""Rows of one program on a mesh: equally many for every device, and the same images."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jax.sharding import AbstractMesh, AxisType

from bigr_jax.generate.batched import rounded

PROGRAM = """
import json

import jax
import numpy as np

from bigr_jax.generate.batched import drawing, sample_in_batches
from bigr_jax.train.loop import scope
from bigr_jax.train.sharding import make_mesh

sizes = []

def sample(variables, key, labels, given):
    sizes.append(len(labels))
    return labels[:, None] + jax.random.uniform(key, (len(labels), 3)) / 2

labels, key, drawn = np.arange(5), jax.random.key(0), []
for devices in (jax.devices()[:1], jax.devices()):
    with scope(make_mesh({"data": -1}, devices)):
        drawn.append(sample_in_batches(sample, {}, key, labels, {}, 5))
        placed = drawing(sample).lower({}, key, np.arange(8), {}).compile().input_shardings[0]
same = bool((drawn[0] == drawn[1]).all())
print(json.dumps([sizes, same, placed[2].is_fully_replicated]))
"""


@pytest.mark.parametrize(("size", "wanted"), [(1, 6), (6, 6), (7, 12), (100, 102)])
def test_rounded(size: int, wanted: int) -> None:
    mesh = AbstractMesh((2, 3, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    assert rounded(size, mesh) == wanted
    assert rounded(size, AbstractMesh((), ())) == size


def test_devices_draw_equally_many_of_the_same_images(run_python: Any) -> None:
    done = run_python(["-c", PROGRAM], devices=4)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes, same, replicated = json.loads(done.stdout)
    assert set(sizes) == {5, 8} and same and replicated
