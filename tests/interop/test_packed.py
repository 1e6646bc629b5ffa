"""Files of frozen networks: round trips, sizes, and files that are not whole."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.interop import files, packed
from bigr_jax.models.mlp_classifier import MLPClassifier
from bigr_jax.nn.ternary import Frozen, Ternary, freeze

NET = MLPClassifier(5, (33, 30))
IMAGES = np.random.default_rng(0).random((7, 4, 4, 1), np.float32)


@pytest.fixture(scope="module")
def made():
    net = Ternary(NET)
    variables = nn.meta.unbox(net.init(jax.random.key(0), IMAGES))
    matrices = net.matrices(jax.random.key(0), IMAGES)
    return freeze(variables, matrices, "median"), jax.jit(net.apply)(variables, IMAGES)[0]


@pytest.mark.parametrize("form, bits", [("trits", 8 / 5), ("2bit", 2)])
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_file_gives_the_trained_logits(made, form, bits, suffix, tmp_path):
    frozen, logits = made
    path = tmp_path / f"net.{suffix}"
    packed.save(path, frozen, form)
    found = packed.load(path)
    jax.tree.map(np.testing.assert_array_equal, found, frozen)
    np.testing.assert_array_equal(jax.jit(Frozen(NET).apply)(found, IMAGES)[0], logits)
    state = files.read(path)
    size = sum(leaf.size for name, leaf in state.items() if name.endswith(form))
    # Every kernel fills its last byte up.
    weights = 16 * 33 + 33 * 30 + 30 * 5
    assert weights * bits / 8 <= size < weights * bits / 8 + 3
    assert all(leaf.dtype == np.uint8 for name, leaf in state.items() if name.endswith(form))


def test_files_that_are_not_whole_are_named(made, tmp_path):
    path = tmp_path / "net.npz"
    packed.save(path, made[0])
    state, name = files.read(path), "params/hidden_0/kernel"
    files.write(path, {key: leaf for key, leaf in state.items() if key != f"{name}.shape"})
    with pytest.raises(UserError, match=rf"{name}.trits has no {name}.shape beside it"):
        packed.load(path)
    files.write(path, {**state, f"{name}.trits": state[f"{name}.trits"][:-1]})
    with pytest.raises(UserError, match=r"does not fit params/hidden_0/kernel.shape \(16, 33\)"):
        packed.load(path)
    files.write(path, {"params/kernel": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match="holds no packed kernel"):
        packed.load(path)
    with pytest.raises(UserError, match="does not exist"):
        packed.load(tmp_path / "other.npz")
    with pytest.raises(UserError, match="suffix"):
        packed.save(tmp_path / "net.bin2", made[0])
    with pytest.raises(UserError, match="form of packed weights"):
        packed.save(path, made[0], "bytes")
