"""Files of named tensors."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.interop.files import read, write

STATE = {
    "encoder.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "counter": np.int64(7),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.zeros((0, 3), np.float16),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"weights{suffix}"
    write(path, STATE)
    back = read(path)
    assert back.keys() == STATE.keys()
    for name, value in STATE.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
        np.testing.assert_array_equal(back[name], value)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_networks_side_by_side(tmp_path):
    path = tmp_path / "all.npz"
    names = ("ae.conv.weight", "disc.main.0.weight", "perceptual.lin0.model.1.weight")
    write(path, {name: np.float32([i]) for i, name in enumerate(names)})
    assert read(path) == {"conv.weight": [0.0]}
    assert read(path, "disc") == {"main.0.weight": [1.0]}
    with pytest.raises(UserError, match=r"part='disk' .*mean 'disc'.*legal: ae, disc, perceptual"):
        read(path, "disk")


def test_averaged_weights_are_taken_out_of_their_nesting(tmp_path):
    path = tmp_path / "nested.safetensors"
    write(path, {"ema.norm.weight": np.float32([1]), "model.norm.weight": np.float32([2])})
    assert read(path) == {"norm.weight": [1.0]}


def test_plain_names_are_left_alone(tmp_path):
    path = tmp_path / "plain.npz"
    write(path, {"adaLN.1.bias": np.float32([1]), "emae": np.float32([2])})
    assert read(path) == {"adaLN.1.bias": [1.0], "emae": [2.0]}


@pytest.mark.parametrize("name", ["model.pt", "binaryae_ema.th"])
def test_a_pickle_is_never_opened_but_the_command_is_told_and_works(tmp_path, name):
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    path.write_bytes(b"never read")
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text and repr(str(path)) in text
    # A stand-in for PyTorch, which gives what the published generators and tokenizers hold.
    nested = "{'ema': tensors}" if name.endswith(".pt") else "tensors"
    (tmp_path / "torch.py").write_text(
        "import numpy\n"
        "class Tensor:\n"
        "    def numpy(self): return numpy.float32([1, 2])\n"
        "def load(path, map_location, weights_only):\n"
        "    assert map_location == 'cpu' and weights_only\n"
        f"    tensors = {{'norm.weight': Tensor()}}\n    return {nested}\n"
    )
    command = shlex.split(text[text.index("python -c") :])
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, *command[1:]], check=True, env=environment)
    state = read(path.with_suffix(".npz"))
    np.testing.assert_array_equal(state["norm.weight"], np.float32([1, 2]))


def test_bfloat16(tmp_path):
    path = tmp_path / "low.safetensors"
    value = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    write(path, {"x": value})
    back = read(path)["x"]
    assert back.dtype == value.dtype and back.tobytes() == value.tobytes()


def test_other_errors(tmp_path):
    with pytest.raises(UserError, match=r"suffix .*'.h5' is not known.*legal: .npz, .safetensors"):
        write(tmp_path / "weights.h5", STATE)
    with pytest.raises(ValueError, match=r"objects cannot be written: \['x'\]"):
        write(tmp_path / "weights.npz", {"x": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "missing.npz")
    for name in ("broken.npz", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of tensors")
        with pytest.raises(UserError, match=f"{name}' cannot be read"):
            read(tmp_path / name)
    np.save(tmp_path / "single.npy", np.ones(2))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "single.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "objects.npz")
