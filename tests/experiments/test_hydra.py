"""The study of Hydra compares mixers at one number of parameters."""

from __future__ import annotations

from pathlib import Path

from bigr_jax import config as configs
from bigr_jax.lab import Lab
from experiments import hydra


def test_a_feed_forward_layer_fills_what_a_mixer_leaves(tmp_path: Path) -> None:
    lab = Lab(configs.load("hydra:smoke"), str(tmp_path), str(tmp_path))
    names = ("hydra", "concat", "causal", "attention")
    arms = {name: {"encoder.mixer": name} for name in names}
    found = hydra.equalised(lab, "recall", arms)
    assert found["concat"] == {**arms["concat"], "encoder.hidden": "0"}
    sizes = [hydra.parameters(lab.run(name, whole)) for name, whole in found.items()]
    config = lab.config
    # What one more hidden feature weighs.
    step = config.encoder.depth * (2 * config.model.width + 1)
    assert max(sizes) - min(sizes) <= step
    before = [hydra.parameters(lab.run(name, own)) for name, own in arms.items()]
    assert max(before) - min(before) > 10 * step
