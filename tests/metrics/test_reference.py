"""Files of images and statistics: what is read back, batch by batch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.metrics import reference
from bigr_jax.metrics.frechet import moments
from bigr_jax.metrics.reference import Images, read_images, read_made, read_reference, write


def pixels(rows=7, channels=3, size=(2, 5)):
    rng = np.random.default_rng(rows)
    return rng.integers(0, 256, (rows, *size, channels)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_images_come_in_batches(tmp_path, save, size):
    save(tmp_path / "a.npz", arr_0=pixels(), arr_1=np.arange(7))
    images = Images(str(tmp_path / "a.npz"))
    assert len(images) == 7 and images.shape == (7, 2, 5, 3)
    parts = list(images.batches(size))
    assert [len(part) for part in parts] == [size] * (7 // size) + [7 % size] * (7 % size > 0)
    np.testing.assert_array_equal(np.concatenate(parts), pixels())
    # A second time as well.
    assert len(list(images.batches(size))) == len(parts)


@pytest.mark.parametrize("shape", [(7, 2, 5, 1), (7, 2, 5)])
def test_grey_becomes_three_equal_channels(tmp_path, shape):
    grey = pixels(channels=1)
    np.savez(tmp_path / "a.npz", arr_0=grey.reshape(shape))
    (found,) = read_images(str(tmp_path / "a.npz")).batches(7)
    np.testing.assert_array_equal(found, np.repeat(grey, 3, axis=3))


def test_statistics_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    pool, spatial = (moments(rng.standard_normal((9, size))) for size in (4, 3))
    path = str(tmp_path / "below" / "ref.npz")
    write(path, reference.statistics(pool, spatial), {"why": "a test"})
    assert not list(tmp_path.glob("**/*.new"))
    found = read_reference(path)
    assert found.images is None and read_made(path) == {"why": "a test"}
    for ours, theirs in ((found.pool, pool), (found.spatial, spatial)):
        np.testing.assert_array_equal(ours.mean, theirs.mean)
        np.testing.assert_array_equal(ours.covariance, theirs.covariance)
    # With the names of the published files, and nothing but arrays in them.
    with np.load(path) as archive:
        assert set(archive.files) == {"mu", "sigma", "mu_s", "sigma_s", "made_json"}


def test_parts_of_a_reference(tmp_path):
    own = moments(np.random.default_rng(0).standard_normal((9, 4)))
    path = str(tmp_path / "ref.npz")
    np.savez(path, mu=own.mean.astype(np.float32), sigma=own.covariance)
    found = read_reference(path)
    assert found.spatial is None and found.images is None
    assert found.pool.mean.dtype == np.float64
    assert read_made(path) is None and read_made(str(tmp_path / "none.npz")) is None
    np.savez(path, arr_0=pixels())
    assert read_reference(path)[:2] == (None, None) and len(read_reference(path).images) == 7


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "is no reference: it holds nothing"),
        ({"mu": np.zeros(3)}, "is no reference: it holds mu; legal: 'arr_0', or 'mu' and 'sigma'"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"'mu' \(3,\) and 'sigma' \(2, 2\) in .* are no"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "'mu' or 'sigma' in .* is not finite"),
        (
            {"arr_0": np.zeros((2, 4, 4, 3))},
            r"'arr_0' in .* is float64 \(2, 4, 4, 3\); legal: uint8",
        ),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, r"is uint8 \(2, 4, 4, 4\); legal"),
        ({"arr_0": np.zeros((2, 4), np.uint8)}, r"is uint8 \(2, 4\); legal"),
        ({"arr_0": np.array([{}])}, r"is object \(1,\); legal"),
    ],
)
def test_files_that_are_no_reference(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_reference(str(tmp_path / "a.npz"))


def test_files_that_are_broken_or_missing(tmp_path):
    path = tmp_path / "a.npz"
    for read in (read_reference, read_images):
        with pytest.raises(UserError, match=r"file '.*a.npz' does not exist"):
            read(str(path))
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read as npz"):
        read_reference(str(path))
    with pytest.raises(UserError, match="has no images 'arr_0' to read"):
        read_images(str(path))
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(UserError, match="has no images 'arr_0' to read"):
        read_images(str(path))
    assert read_made(str(path)) is None
