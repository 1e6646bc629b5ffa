"""Inception-v3 and its metrics against numbers of torch-fidelity 0.4.0, and against it itself.

`inception.npz` holds what torch-fidelity made of random weights, images and features, which
`make_inception.py` draws here once more.
"""

from __future__ import annotations

import importlib
import importlib.util
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.interop.torch import from_torch, shapes
from bigr_jax.metrics.frechet import frechet, moments
from bigr_jax.metrics.inception_score import inception_score
from bigr_jax.metrics.kernel import kernel_distance, subset_kernel_distance
from bigr_jax.metrics.neighbours import precision_recall, rounded_squares
from bigr_jax.models import inception
from bigr_jax.models.inception import InceptionV3, Taps
from tests.parity import make_inception as made

LAYERS = ("64", "192", "768", "spatial", "2048", "logits", "logits_unbiased")
FIELDS = dict(zip(Taps._fields, LAYERS, strict=True))
# Of the scale of a tap: the largest of its numbers.
RTOL = 1e-5


@pytest.fixture(scope="module")
def pack():
    with np.load(made.PACK) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def meta(pack):
    return json.loads(bytes(pack["meta_json"]))


@pytest.fixture(scope="module")
def variables():
    return from_torch(InceptionV3(), made.weights(shapes(InceptionV3())))


@pytest.fixture(scope="module")
def found(variables):
    """Taps of both sets, of images of every size: one program, since each is resized before."""
    run, result = jax.jit(InceptionV3().apply), {}
    for name in made.SETS:
        same = [inception.tf1_resize(one[None] * 1.0, 299) for one in made.images(name)]
        result[name] = jax.device_get(run(variables, np.concatenate(same)))
    return result


def error(found, pack, name="a"):
    """Returns {tap: largest error, in units of its largest number}."""
    wanted = {field: pack[f"{name}/{layer}"] for field, layer in FIELDS.items()}
    assert all(getattr(found, field).shape == x.shape for field, x in wanted.items())
    scale = {field: np.abs(x).max() for field, x in wanted.items()}
    return {k: float(np.abs(getattr(found, k) - x).max() / scale[k]) for k, x in wanted.items()}


def test_the_published_names_and_shapes_in_their_order(meta):
    assert {k: list(v) for k, v in shapes(InceptionV3()).items()} == meta["shapes"]
    assert list(shapes(InceptionV3())) == list(meta["shapes"])


@pytest.fixture(scope="module")
def planted():
    """A function (variables, images, bugs) -> taps, in one program; `bugs` switches faults on.

    bugs: bool [3]: pools that count the padding, an average in the last block, and a resize that
    takes pixels for areas.
    """
    right = inception.averaged, inception.largest, inception.tf1_resize

    def run(variables, images, bugs):
        def averaged(x):
            padded = nn.avg_pool(x, (3, 3), (1, 1), "SAME")
            return jnp.where(bugs[0], padded, right[0](x))

        def largest(x):
            return jnp.where(bugs[1], right[0](x), right[1](x))

        def resized(x, side):
            areas = jax.image.resize(x, (len(x), side, side, 3), "bilinear")
            return jnp.where(bugs[2], areas, right[2](x, side))

        inception.averaged, inception.largest, inception.tf1_resize = averaged, largest, resized
        try:
            return InceptionV3().apply(variables, images)
        finally:
            inception.averaged, inception.largest, inception.tf1_resize = right

    return jax.jit(run)


@pytest.mark.parametrize("name", made.SETS)
def test_features_of_every_size(found, pack, name):
    errors = error(found[name], pack, name)
    assert max(errors.values()) < RTOL, errors


BUGS = {"padding is counted": 0, "an average in the last block": 1, "pixels are areas": 2}


@pytest.fixture(scope="module")
def small(pack):
    return made.images("a")[:1], {k: v[:1] for k, v in pack.items() if k.startswith("a/")}


def test_nothing_planted_is_right(variables, planted, small):
    images, pack = small
    found = jax.device_get(planted(variables, np.stack(images), np.zeros(3, bool)))
    assert max(error(found, pack).values()) < RTOL


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_fault_is_found(variables, planted, small, bug):
    images, pack = small
    bugs = np.arange(3) == BUGS[bug]
    found = jax.device_get(planted(variables, np.stack(images), bugs))
    assert error(found, pack)["pool"] > 100 * RTOL


@pytest.mark.parametrize("bug", ["epsilon", "mirrored colours", "a level off", "bias"])
def test_a_fault_of_weights_or_pixels_is_found(variables, planted, small, bug):
    images, pack = small
    images = np.stack(images)
    if bug == "epsilon":
        lower = jax.tree.map(lambda x: x, variables)
        lower["batch_stats"] = jax.tree_util.tree_map_with_path(
            lambda path, x: x - 9.9e-4 * (path[-1].key == "var"), variables["batch_stats"]
        )
        variables = lower
    elif bug == "mirrored colours":
        images = images[..., ::-1]
    elif bug == "a level off":
        images = np.maximum(images, 1) - 1
    found = jax.device_get(planted(variables, images, np.zeros(3, bool)))
    if bug == "bias":
        found = found._replace(logits_unbiased=found.logits)
        assert error(found, pack)["logits_unbiased"] > 10 * RTOL
        return
    assert error(found, pack)["pool"] > 10 * RTOL


@pytest.mark.parametrize("name", made.DISTANCES)
def test_distances_of_random_features(meta, name):
    a, b = made.pairs(name)
    wanted = meta["distances"][name]
    np.testing.assert_allclose(frechet(moments(a), moments(b)), wanted["fid"], rtol=1e-5)
    found = subset_kernel_distance(a, b, made.KID["kid_subsets"], made.KID["kid_subset_size"])
    np.testing.assert_allclose(found, wanted["kid"], rtol=1e-5)
    # Over all pairs at once it is another estimate of the same number.
    spread = wanted["kid"][1]
    assert abs(kernel_distance(a, b) - wanted["kid"][0]) < 2 * spread
    for squares in (None, rounded_squares):
        found = precision_recall(a, b) if squares is None else precision_recall(a, b, 3, squares)
        assert list(found.values()) == pytest.approx(wanted["prc"], abs=1e-7)


@pytest.mark.parametrize("name", made.SCORES)
def test_inception_score_of_random_logits(meta, name):
    logits = 3 * made.features(3, *made.SCORES[name])
    found = inception_score(logits, "torch-fidelity")
    np.testing.assert_allclose(found, meta["scores"][name]["shuffled"], rtol=1e-6)
    # In order and in equal parts, both protocols are one.
    if len(logits) % 10 == 0:
        ordered = inception_score(logits, "adm", chunk=len(logits) // 10)
        np.testing.assert_allclose(ordered, meta["scores"][name]["ordered"], rtol=1e-6)


def test_metrics_of_images(found, meta):
    layers = {"192": "second", "768": "middle"}
    for layer, value in meta["sets"]["fid"].items():
        ours = frechet(*(moments(getattr(found[name], layers[layer])) for name in made.SETS))
        np.testing.assert_allclose(ours, value, rtol=1e-5)
    a, b = found["a"], found["b"]
    kid = subset_kernel_distance(a.pool, b.pool, 5, 3)
    np.testing.assert_allclose(kid, meta["sets"]["kid"], rtol=1e-4)
    score = inception_score(a.logits_unbiased, "torch-fidelity", splits=2)
    np.testing.assert_allclose(score, meta["sets"]["isc"], rtol=1e-5)


INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "torch_fidelity"))


@pytest.mark.skipif(not INSTALLED, reason="torch and torch-fidelity are not installed")
def test_torch_fidelity_itself(found, pack, tmp_path):
    torch, fidelity = made.libraries()
    network, _ = made.extractor(torch, fidelity, tmp_path)
    theirs = made.taps(torch, network, "b")
    for layer, values in theirs.items():
        np.testing.assert_allclose(values, pack[f"b/{layer}"], atol=RTOL * np.abs(values).max())
    assert max(error(found["b"], {f"b/{k}": v for k, v in theirs.items()}, "b").values()) < RTOL
