"""Comparable numbers of a work directory and of files, with a stand-in for Inception-v3."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bigr_jax.data import ArraySource
from bigr_jax.errors import UserError
from bigr_jax.metrics import reference
from bigr_jax.metrics.comparable import Features, compare, summary
from bigr_jax.train import commands, comparable
from bigr_jax.train.comparable import Settings, compare_files, compare_run

MAPS = [np.random.default_rng(0).standard_normal((48, size)) / 500 for size in (5, 4, 6)]


class Stand:
    """Linear maps of the pixels; counts the images that it is shown."""

    seen = 0

    def __init__(self, path, mesh, size):
        if not os.path.exists(path):
            raise UserError(f"weights file {path!r} does not exist")
        self.name, self.size = Path(path).read_text(), size

    def __call__(self, images):
        assert images.dtype == np.uint8 and images.shape[-1] == 3 and len(images) <= self.size
        Stand.seen += len(images)
        flat = images.reshape(len(images), -1).astype(np.float64)
        return Features(*(flat @ one for one in MAPS))


@pytest.fixture(autouse=True)
def stand(monkeypatch):
    monkeypatch.setattr(comparable, "InceptionReader", Stand)
    Stand.seen = 0


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparable")
    commands.train(tiny(), str(workdir))
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_text("stand-in 1")
    return str(path)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_against_the_training_split(workdir, weights):
    before = results(workdir)
    settings = Settings(weights, samples=30, batch=8)
    found = compare_run(str(workdir), settings)
    after = results(workdir)
    assert after.pop("comparable") == found and after == before
    told = {name: found[name] for name in ("stage", "seed", "samples", "reference", "inception")}
    assert told == {
        "stage": "second",
        "seed": 0,
        "samples": 30,
        "reference": "training split",
        "inception": "stand-in 1",
    }
    assert found["sample"] == {"noise": 0.1} and found["protocol"].startswith("guided-diffusion")
    # By its parts: the drawn file against all training images.
    drawn = reference.read_images(found["drawn"])
    assert found["drawn"] == str(workdir / "samples-30-0.npz") and len(drawn) == 30
    read = Stand(weights, None, 2000)
    ours = summary(drawn.batches(2000), read, "samples")
    other = reference.read_reference(str(workdir / "reference-train.npz"))
    wanted = compare(ours, other, read, 2000)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert {"fid", "sfid", "inception_score", "precision", "recall", "kid"} <= wanted.keys()


def test_the_statistics_are_those_of_the_whole_split_and_are_kept(workdir, weights, monkeypatch):
    monkeypatch.setattr(comparable, "SHOWN", 50)
    settings = Settings(weights, samples=30, batch=8)
    first = compare_run(str(workdir), settings)
    # 30 drawn, the split, and those of it that are kept as images.
    assert Stand.seen == 30 + 1438 + 50
    kept = reference.read_reference(str(workdir / "reference-train.npz"))
    assert kept.images.shape == (50, 4, 4, 3)
    run = comparable.opened(str(workdir))
    rows = run.sources["train"].gather(np.arange(1438))["image"]
    flat = np.repeat(rows, 3, axis=-1).reshape(1438, -1) @ MAPS[0]
    np.testing.assert_allclose(kept.pool.mean, flat.mean(0), rtol=1e-9)
    np.testing.assert_allclose(kept.pool.covariance, np.cov(flat.T), rtol=1e-8)
    # Drawn and computed once; with another network, computed again.
    Stand.seen = 0
    assert compare_run(str(workdir), settings) == first and Stand.seen == 30 + 50
    Path(weights).write_text("stand-in 2")
    Stand.seen = 0
    compare_run(str(workdir), settings)
    assert Stand.seen == 30 + 1438 + 50
    # Given by name, that file says the same.
    named = settings._replace(reference=str(workdir / "reference-train.npz"))
    again = compare_run(str(workdir), named)
    assert again["fid"] == first["fid"] and again["reference"].endswith("reference-train.npz")


def test_settings_of_the_sampler(workdir, weights):
    settings = Settings(weights, samples=30, batch=30, out=str(workdir / "warm.npz"))
    found = compare_run(str(workdir), settings, {"sample.noise": "2.0"})
    assert found["sample"] == {"noise": 2.0} and found["drawn"] == str(workdir / "warm.npz")
    cold = compare_run(str(workdir), Settings(weights, samples=30, batch=30))
    assert cold["fid"] != found["fid"]
    with pytest.raises(UserError, match=r"config\.sample\.nois is not a key"):
        compare_run(str(workdir), settings, {"sample.nois": "2.0"})


def test_files_against_files(tmp_path, weights):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 256, (20, 4, 4, 3), np.uint8))
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    found = compare_files(a, Settings(weights, reference=b, batch=8))
    assert found["samples"] == 20 and found["reference"] == b and found["fid"] > 0.01
    own = compare_files(a, Settings(weights, reference=a, batch=3))
    assert own["fid"] == pytest.approx(0, abs=1e-7) and own["precision"] == own["recall"] == 1
    with pytest.raises(UserError, match="--images is compared with --reference=REF"):
        compare_files(a, Settings(weights))
    with pytest.raises(UserError, match=r"file 'none.npz' does not exist"):
        compare_files("none.npz", Settings(weights, reference=b))


def test_mistakes_are_said_before_anything_is_drawn(workdir, weights, monkeypatch):
    monkeypatch.setattr(comparable.DrawnSamples, "batches", None)
    for changes, message in (
        ({"inception": "none.npz"}, "weights file 'none.npz' does not exist"),
        ({"reference": "none.npz"}, "file 'none.npz' does not exist"),
        ({"out": "samples.png"}, "--out=samples.png: legal: a name that ends in .npz"),
    ):
        with pytest.raises(UserError, match=message):
            compare_run(str(workdir), Settings(weights)._replace(**changes))
    shutil.rmtree(workdir / "second")
    with pytest.raises(UserError, match="stage 'second' is at step 0 of 6"):
        compare_run(str(workdir), Settings(weights))
    with pytest.raises(UserError, match="is no work directory of `bigr train`"):
        compare_run(str(workdir / "none"), Settings(weights))


def test_data_without_images(workdir, weights, monkeypatch):
    gather = ArraySource.gather

    def coded(self, indices):
        found = gather(self, indices)
        return {"codes": found["image"], "label": found["label"]}

    monkeypatch.setattr(ArraySource, "gather", coded)
    with pytest.raises(UserError, match="the data hold no images to compare with; give --ref"):
        compare_run(str(workdir), Settings(weights, samples=30))
