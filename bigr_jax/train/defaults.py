"""The settings that every experiment has, with their defaults written out."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def base(slug: str, variant: str) -> ConfigDict:
    """Returns the settings shared by all experiments.

    mesh      devices along each axis, one may be -1: all that are left
    sharding  (regex over parameter paths, (axis or None per dimension)) pairs that overrule the
              table
    logging   writers beside metrics.jsonl
    """
    return ConfigDict(
        {
            "slug": slug,
            "variant": variant,
            "seed": 0,
            "mesh": {"data": -1, "fsdp": 1, "model": 1, "seq": 1},
            "sharding": (),
            "logging": {"tensorboard": False, "wandb": False},
        }
    )


def section(**settings: Any) -> ConfigDict:
    """Returns a section of a config."""
    return ConfigDict(settings)


def stage(duration: str, batch_size: int, **changes: Any) -> ConfigDict:
    """Returns the training settings of one stage, with changes by name.

    Durations read "3000 steps", "40 epochs", "1_000_000 examples" or "10%" (of the stage). A change
    goes to the stage or to its optimizer, whichever has the name; `optimizer` names the optimizer.
    `repeat` says how often an example stands in a batch, each time changed differently; an epoch
    has as many rows as ever. The last steps, `cooldown`, keep the learning rate at its end.
    `nonfinite` says what happens at a step that is not finite: see `train/guard.py`.
    Raises KeyError for a name that neither has.
    """
    optimizer = {
        "name": changes.pop("optimizer", "adamw"),
        "lr": 1e-3,
        "schedule": "cosine",
        "warmup": "5%",
        "cooldown": "0%",
        "end_lr": 0.0,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip": 1.0,
        "decay_skip": (),
        "lr_multipliers": (),
    }
    settings: dict[str, Any] = {
        "duration": duration,
        "batch_size": batch_size,
        "eval_batch_size": 256,
        "accumulate": 1,
        "repeat": 1,
        "ema": 0.0,
        "log": "50 steps",
        "evaluate": "25%",
        "save": "20%",
        "keep": 2,
        "best": "",
        "nonfinite": "raise",
    }
    for name, value in changes.items():
        place = optimizer if name in optimizer else settings
        if name not in place:
            raise KeyError(f"{name} is no training setting: {[*settings, *optimizer]}")
        place[name] = value
    return ConfigDict({**settings, "optimizer": optimizer})
