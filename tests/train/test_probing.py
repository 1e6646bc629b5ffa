"""Probes of a trained generator's layers: the features, kept or read again, and the results."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.metrics.probe_mae import Protocol
from bigr_jax.tasks.autoencoder import encode
from bigr_jax.train import commands, probing
from bigr_jax.train.probing import probe_run, probed_stage
from bigr_jax.train.run import opened

SHORT = Protocol(batch=128, epochs=20, warmup=1, rate=50.0)


@pytest.fixture(scope="module")
def workdir(smoke, tmp_path_factory):
    return shutil.copytree(smoke, tmp_path_factory.mktemp("probing") / "run")


@pytest.fixture(scope="module")
def run(workdir):
    return opened(str(workdir), data=True)


def test_every_layer_is_measured_and_written(workdir, run, monkeypatch):
    before = json.loads((workdir / "results.json").read_text())
    found = probe_run(str(workdir), SHORT)
    after = json.loads((workdir / "results.json").read_text())
    assert after.pop("probe_mae") == found and after == before
    layers = [f"layer{index}" for index in range(run.methods["generator"].model.net.depth)]
    assert list(found) == ["stage", "protocol", *layers] and found["stage"] == "generator"
    assert found["protocol"]["batch"] == 128 and found["protocol"]["augmentation"] == "none"
    for layer in layers:
        assert 0 <= found[layer]["top1"] <= found[layer]["top5"] <= 1
    # So short a training leaves what the pixels tell in the features.
    assert max(found[layer]["top1"] for layer in layers) > 0.2
    # Features that are not kept are read again in every step, and are the same.
    few = SHORT._replace(epochs=2)
    found = probe_run(str(workdir), few)
    monkeypatch.setattr(probing, "KEPT", 0)
    assert probe_run(str(workdir), few, "generator") == found


def test_features_are_those_of_the_network(run):
    features = probing._Features(run, "generator", run.sources["test"], {})
    rows = np.array([5, 3, 100])
    found, labels = features(rows)
    model, given = run.methods["generator"].model, run.given("generator")
    columns = run.sources["test"].gather(rows)
    codes = encode(model.tokenizer, given["tokenizer"], columns["image"] / np.float32(255))
    wanted = model.net.apply(run.variables("generator"), codes, method="pooled")
    np.testing.assert_array_equal(labels, columns["label"])
    np.testing.assert_allclose(found, wanted.swapaxes(0, 1), rtol=2e-4, atol=2e-5)
    parts = list(features.in_order("reading"))
    assert sum(len(own) for _, own in parts) == len(run.sources["test"])
    np.testing.assert_allclose(parts[0][0][:, 100], found[:, 2], rtol=1e-5, atol=1e-6)


def test_a_stage_without_features(workdir, run, tiny, tmp_path):
    assert probed_stage(run) == probed_stage(run, "generator") == "generator"
    with pytest.raises(UserError, match="bigr: stage 'tokenizer' has no features to probe"):
        probed_stage(run, "tokenizer")
    commands.train(tiny(), str(tmp_path))
    with pytest.raises(UserError, match="no stage has features to probe"):
        probe_run(str(tmp_path), SHORT)
    with pytest.raises(UserError, match=r"--stage=genrator is no stage \(did you mean 'generator"):
        probe_run(str(workdir), SHORT, "genrator")
    with pytest.raises(UserError, match="warmup=20"):
        probe_run(str(workdir), SHORT._replace(warmup=20))
