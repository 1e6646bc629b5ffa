"""Segmentation as a method: through the trainer, against float64, mirrored with its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.data import matching
from bigr_jax.data.source import NOT_ASKED
from bigr_jax.errors import UserError
from bigr_jax.tasks.segmentation import segmenter
from bigr_jax.train.run import Run, opened

EXAMPLE = str(Path(__file__).parent / "segmenting.py")


def test_a_run_measures_what_its_logits_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(matching, "EXAMPLES", {"train": 64, "test": 100})
    run = Run(configs.load(EXAMPLE), str(tmp_path))
    run.write_description()
    run.train("only")
    found = run.results()["stages"]["only"]["test"]
    run = opened(str(tmp_path))
    rows = run.sources["test"].gather(np.arange(100))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run.variables("only"))
    params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    # Four steps have moved the averages most of the way.
    assert abs(stats["mean"]).max() > 0 and (stats["var"] < 0.5).all()
    x = (rows["features"] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    x = x * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]
    logits = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    asked = rows["segments"] != NOT_ASKED
    wanted, logits = rows["segments"][asked], logits[asked]
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    told = logits.argmax(-1)
    ious = [
        ((told == k) & (wanted == k)).sum() / ((told == k) | (wanted == k)).sum()
        for k in np.union1d(told, wanted)
    ]
    expected = {
        "accuracy": (told == wanted).mean(),
        "loss": -logs[np.arange(100), wanted].mean(),
        "mean_iou": np.mean(ious),
    }
    assert found == pytest.approx(expected, rel=1e-4)


class Echo(nn.Module):
    """Tells of each place what its pixel says, and remembers the left column of what it saw."""

    @nn.compact
    def __call__(self, images: Any, deterministic: bool) -> Any:
        seen = self.variable("seen", "left", jnp.zeros, images.shape[:2])
        if not deterministic:
            seen.value = images[:, :, 0, 0]
        scale = self.param("scale", nn.initializers.constant(30.0), ())
        return scale * jax.nn.one_hot(jnp.round(images[..., 0] * 255).astype(int), 4)


def batch() -> dict[str, Any]:
    segments = np.random.default_rng(0).integers(0, 4, (8, 3, 5)).astype(np.uint8)
    image = jnp.asarray(segments[..., None])
    segments[0, 0, :2] = NOT_ASKED
    return {"image": image, "segments": jnp.asarray(segments), "mask": jnp.ones(8)}


def test_segments_are_mirrored_with_their_images() -> None:
    method, rows = segmenter(Echo(), augmentation="flip"), batch()
    variables = method.init(jax.random.key(0), rows, {})
    sides = rows["image"][:, :, 0, 0] / 255, rows["image"][:, :, -1, 0] / 255
    loss, mirrored = jax.jit(method.loss), 0
    for key in jax.random.split(jax.random.key(1), 4):
        value, aux = loss(variables, key, rows, {})
        assert value < 1e-4 and aux.metrics["accuracy"] == 1
        left = np.asarray(aux.mutable["seen"]["left"])
        same = [(left == side).all(1) for side in sides]
        assert (same[0] | same[1]).all()
        mirrored += (~same[0]).sum()
    assert 8 <= mirrored <= 24


def test_what_counts() -> None:
    method, rows = segmenter(Echo(), smoothing=0.2), batch()
    variables = method.init(jax.random.key(0), rows, {})
    # Two of the places that are asked for are wrong; a third is in a row that pads the batch.
    rows["image"] = rows["image"].at[1, 0, :2].set(rows["image"][1, 0, :2] ^ 1)
    rows["image"] = rows["image"].at[7, 0, 0].set(rows["image"][7, 0, 0] ^ 1)
    value, aux = jax.jit(method.loss)(variables, jax.random.key(0), rows, {})
    # Smoothing by 0.2 leaves 0.85 to the right class and 0.05 to each of the others.
    np.testing.assert_allclose(value, 30 * (115 * 0.15 + 3 * 0.95) / 118, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["accuracy"], 115 / 118, rtol=1e-6)
    rows["mask"] = rows["mask"].at[7].set(0)
    found = jax.jit(method.evaluate)(variables, jax.random.key(0), rows, {})
    assert (found["accuracy"].value, found["accuracy"].weight) == (101, 103)
    np.testing.assert_allclose(found["loss"].value, 60, rtol=1e-5)
    assert found["mean_iou"].value.sum() == 101 and found["mean_iou"].weight.sum() == 105


def test_what_cannot_be_segmented() -> None:
    with pytest.raises(UserError, match=r"data\.augment='flip,rotate:9' does not move segments"):
        segmenter(Echo(), augmentation="flip,rotate:9")
    rows = batch()
    rows["segments"] = rows["segments"][:, :2]
    method = segmenter(Echo())
    variables = method.init(jax.random.key(0), rows, {})
    with pytest.raises(ValueError, match=r"logits \(8, 3, 5, 4\) are not of the places"):
        method.loss(variables, jax.random.key(0), rows, {})
