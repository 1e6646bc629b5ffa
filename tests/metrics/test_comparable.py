"""The protocol as a whole, with a linear map in the place of Inception-v3."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.metrics import reference
from bigr_jax.metrics.comparable import Features, compare, summary
from bigr_jax.metrics.frechet import frechet, moments
from bigr_jax.metrics.inception_score import inception_score
from bigr_jax.metrics.kernel import subset_kernel_distance
from bigr_jax.metrics.neighbours import precision_recall

RNG = np.random.default_rng(0)
MAPS = [RNG.standard_normal((2 * 2 * 3, size)) / 300 for size in (5, 4, 6)]


def read(images):
    flat = images.reshape(len(images), -1).astype(np.float32)
    return Features(*(flat @ one.astype(np.float32) for one in MAPS))


def pixels(seed, rows, low=0):
    return np.random.default_rng(seed).integers(low, 256, (rows, 2, 2, 3)).astype(np.uint8)


def batches(images, size=7):
    return (images[i : i + size] for i in range(0, len(images), size))


def test_every_image_is_looked_at_once_and_the_moments_are_of_all():
    images = pixels(0, 31)
    found = summary(batches(images), read, "samples")
    whole = read(images)
    for ours, theirs in ((found.pool, whole.pool), (found.spatial, whole.spatial)):
        np.testing.assert_allclose(ours.mean, moments(theirs).mean, rtol=1e-6)
        np.testing.assert_allclose(ours.covariance, moments(theirs).covariance, rtol=1e-5)
        assert ours.rows == 31
    np.testing.assert_allclose(found.features, whole.pool, rtol=1e-6)
    np.testing.assert_allclose(found.logits, whole.logits, rtol=1e-6)
    lean = summary(batches(images), read, "samples", keep=False)
    assert lean.features is None and lean.logits is None
    np.testing.assert_array_equal(lean.pool.covariance, found.pool.covariance)


@pytest.fixture
def files(tmp_path):
    """References of the same images: the images, their statistics, those of the pool, and both."""
    images = pixels(1, 40, 60)
    whole = read(images)
    pool, spatial = moments(whole.pool), moments(whole.spatial)
    arrays = {
        "images": {"arr_0": images},
        "statistics": reference.statistics(pool, spatial),
        "pool": reference.statistics(pool, None),
        "both": {"arr_0": images[:9], **reference.statistics(pool, spatial)},
    }
    for name, members in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **members)
    found = {name: reference.read_reference(str(tmp_path / f"{name}.npz")) for name in arrays}
    return images, found


def test_every_number_is_that_of_its_own_function(files):
    images, references = files
    drawn = pixels(0, 31)
    samples = summary(batches(drawn), read, "samples")
    ours, real = read(drawn), read(images)
    found = compare(samples, references["images"], read, 7)
    wanted = {
        "fid": frechet(moments(ours.pool), moments(real.pool)),
        "sfid": frechet(moments(ours.spatial), moments(real.spatial)),
        "inception_score": inception_score(ours.logits).mean,
        "inception_score_std": 0.0,
        **precision_recall(ours.pool, real.pool),
        "kid": subset_kernel_distance(ours.pool, real.pool, size=31).mean,
        "kid_std": subset_kernel_distance(ours.pool, real.pool, size=31).deviation,
    }
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert found["fid"] > 0.01 and found["precision"] < 1


def test_what_a_reference_lacks_is_left_out(files):
    _, references = files
    samples = summary(batches(pixels(0, 31)), read, "samples")
    found = {name: compare(samples, one, read, 7) for name, one in references.items()}
    distances, score = ["fid", "sfid"], ["inception_score", "inception_score_std"]
    assert list(found["statistics"]) == distances + score
    assert list(found["pool"]) == distances[:1] + score
    assert list(found["both"]) == list(found["images"])
    # Statistics are of the whole; precision and recall of the images that are there.
    assert found["both"]["fid"] == found["statistics"]["fid"]
    assert found["both"]["fid"] == pytest.approx(found["images"]["fid"], rel=1e-5)
    assert found["both"]["kid"] != pytest.approx(found["images"]["kid"], rel=1e-3)


def test_of_itself(files):
    images, references = files
    found = compare(summary(batches(images), read, "samples"), references["images"], read, 40)
    assert found["fid"] == pytest.approx(0, abs=1e-6) and found["precision"] == found["recall"] == 1


def test_mistakes_are_named(files):
    with pytest.raises(UserError, match="samples: 1 rows given, legal: 2 and more"):
        summary(batches(pixels(0, 1)), read, "samples")
    with pytest.raises(UserError, match="samples: 0 rows"):
        summary(iter([]), read, "samples")
    samples = summary(batches(pixels(0, 9)), read, "samples")
    other = reference.Reference(moments(RNG.standard_normal((9, 3))), None, None)
    with pytest.raises(UserError, match="of other features: 'mu' has 3 numbers, wanted 5"):
        compare(samples, other, read, 7)
