"""The network of FID read from a file, in groups of one size."""

from __future__ import annotations

import hashlib
import types

import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.interop import files
from bigr_jax.interop.torch import shapes
from bigr_jax.models.inception import InceptionV3
from bigr_jax.train.inception_reader import InceptionReader, round_up
from bigr_jax.train.sharding import make_mesh
from tests.parity import make_inception as made


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    files.write(path, made.weights(shapes(InceptionV3())))
    return path


def test_features_of_fewer_images_than_a_group(path, capsys):
    reader = InceptionReader(str(path), make_mesh({"data": -1}), 2)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert reader.name == f"inception.safetensors sha256:{digest[:12]}"
    (image,) = made.images("a")[:1]
    found = reader(image[None])
    assert capsys.readouterr().err.startswith("compiling Inception-v3, this may take a while ...\n")
    with np.load(made.PACK) as pack:
        for ours, name in zip(found, ("2048", "spatial", "logits_unbiased"), strict=True):
            wanted = pack[f"a/{name}"][:1]
            assert ours.shape == wanted.shape and ours.dtype == np.float32
            np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())
    both = reader(np.stack([255 - image, image]))
    np.testing.assert_allclose(both.pool[1], found.pool[0], rtol=1e-6, atol=1e-6)
    assert np.abs(both.pool[0] - both.pool[1]).max() > 0.1
    # The second group is read by the same program.
    assert capsys.readouterr().err == ""


def test_groups_spread_over_devices():
    mesh = types.SimpleNamespace(shape={"data": 3, "fsdp": 2, "model": 5})
    assert [round_up(size, mesh) for size in (1, 6, 7, 64)] == [6, 6, 12, 66]


def test_mistakes_are_named(tmp_path):
    mesh = make_mesh({"data": -1})
    with pytest.raises(UserError, match=r"is a PyTorch pickle, which is never opened here"):
        InceptionReader("pt_inception.pth", mesh, 2)
    np.savez(tmp_path / "a.npz", weight=np.zeros(3))
    with pytest.raises(UserError, match="do not fit InceptionV3: 472 missing: Conv2d_1a_3x3"):
        InceptionReader(str(tmp_path / "a.npz"), mesh, 2)
