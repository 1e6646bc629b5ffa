"""The published names of FID's Inception-v3: round trip and errors."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.interop import files
from bigr_jax.interop.torch import from_torch, shapes, to_torch
from bigr_jax.models.inception import InceptionV3

MODEL = InceptionV3()


@pytest.fixture(scope="module")
def wanted():
    return shapes(MODEL)


@pytest.fixture(scope="module")
def state(wanted):
    rng = np.random.default_rng(0)
    # Small integers: every tensor is told from every other, and nothing is rounded.
    made = {k: rng.integers(0, 2**16, s).astype(np.float32) for k, s in wanted.items()}
    made["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(7)
    made["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(8)
    return made


def test_published_tensors(wanted):
    assert len(wanted) == 94 * 5 + 2
    assert wanted["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert wanted["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert wanted["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert wanted["fc.weight"] == (1008, 2048) and wanted["fc.bias"] == (1008,)


def test_round_trip_through_a_file(state, tmp_path):
    path = tmp_path / "weights.safetensors"
    files.write(path, state)
    variables = from_torch(MODEL, files.read(path))
    unit = variables["params"]["Mixed_6b"]["branch7x7_2"]
    theirs = state["Mixed_6b.branch7x7_2.conv.weight"]
    assert unit["conv"]["kernel"][0, 4, 3, 5] == theirs[5, 3, 0, 4]
    stats = variables["batch_stats"]["Mixed_6b"]["branch7x7_2"]["bn"]
    np.testing.assert_array_equal(stats["var"], state["Mixed_6b.branch7x7_2.bn.running_var"])
    back = to_torch(MODEL, variables)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], value) for name, value in state.items())


def test_every_key_that_does_not_fit_is_named(state):
    other = dict(state)
    other["Mixed_5b.branch1x1.bn.wieght"] = other.pop("Mixed_5b.branch1x1.bn.weight")
    other["AuxLogits.fc.bias"] = np.zeros(3)
    other["fc.weight"], other["fc.bias"] = np.zeros((1000, 2048)), np.zeros(1000)
    with pytest.raises(UserError) as caught:
        from_torch(MODEL, other)
    assert str(caught.value) == (
        "the weights do not fit InceptionV3: 1 missing: Mixed_5b.branch1x1.bn.weight; "
        "2 unknown: Mixed_5b.branch1x1.bn.wieght (did you mean 'Mixed_5b.branch1x1.bn.weight'?), "
        "AuxLogits.fc.bias; 2 of another shape: fc.weight is (1000, 2048), wanted (1008, 2048), "
        "fc.bias is (1000,), wanted (1008,)"
    )
