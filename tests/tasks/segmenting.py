"""Segmenting: one linear map of every place, of regions to match, a config and an experiment.

Claim     Every place is told.
Evidence  The tests of segmentation.
Command   bigr train --config=tests/tasks/segmenting.py
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from bigr_jax.api import Method
from bigr_jax.tasks.segmentation import segmenter
from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("small",)


class Net(nn.Module):
    """Normalizes, drops and maps each place, with whatever it has of that."""

    classes: int

    @nn.compact
    def __call__(self, images: Any, deterministic: bool) -> Any:
        x = nn.BatchNorm(deterministic, momentum=0.5)(images)
        return nn.Dense(self.classes)(nn.Dropout(0.1)(x, deterministic))


def get_config(variant: str = "small") -> ConfigDict:
    config = base(__file__, variant)
    config.data = section(
        source="matching", size=8, channels=0, num_classes=0, examples=0, augment=""
    )
    config.train = section(
        only=stage("4 steps", 16, eval_batch_size=64, evaluate="4 steps", best="mean_iou")
    )
    return config


def stages(config: Any) -> dict[str, Method]:
    net = Net(config.data.num_classes)
    return {"only": segmenter(net, augmentation=config.data.augment, smoothing=0.1)}


def study(config: Any, lab: Any) -> None:
    pass
