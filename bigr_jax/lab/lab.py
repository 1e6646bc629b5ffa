"""What a study is given: it trains arms, records what was measured, and states what that shows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax import files, pictures
from bigr_jax.train.run import FREE, Run, environment


class Lab:
    """The arms of one experiment in one work directory; whatever is trained already is not trained
    again.

    config   the settings that every arm starts from
    workdir  where the arms are trained
    results  folder that gets NAME.json and NAME-*.png from `write`; NAME is that of the config
    """

    def __init__(self, config: ConfigDict, workdir: str, results: str) -> None:
        self.config, self.workdir, self.results = config, workdir, results
        self._records: list[dict[str, Any]] = []
        self._claims: list[dict[str, Any]] = []
        self._figures: dict[str, np.ndarray] = {}

    def train(self, arm: str, changes: Mapping[str, str] | None = None, seed: int = 0) -> Run:
        """Trains all stages of the config with `changes` ({"model.depth": "2"}) and returns the
        run.

        Arms that differ in settings that training does not see, such as `sample.`, share one
        training.
        """
        changes = dict(changes or {})
        config = configs.override(self.config, {**changes, "seed": str(seed)})
        learnt = any(not key.startswith(FREE) for key in changes)
        run = Run(config, os.path.join(self.workdir, f"{arm if learnt else 'base'}-seed{seed}"))
        run.write_description()
        for name in run.methods:
            run.train(name)
        return run

    def record(self, arm: str, metric: str, value: float, seed: int = 0) -> None:
        """Keeps one measured value of one arm."""
        self._records.append({"arm": arm, "metric": metric, "seed": seed, "value": float(value)})

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Returns {seed: value} of what was recorded.

        Raises KeyError where nothing was.
        """
        found = {
            r["seed"]: r["value"]
            for r in self._records
            if r["arm"] == arm and r["metric"] == metric
        }
        if not found:
            raise KeyError(f"nothing recorded of metric {metric!r} for arm {arm!r}")
        return found

    def claim(self, text: str, metric: str, better: str, than: str) -> bool:
        """States that one arm's metric is higher than another's, and returns whether it is.

        It holds when the mean of the differences, paired by seed, is positive by more than their
        standard error; a value that is not finite supports nothing.
        Raises KeyError where nothing was recorded, or no seed of both.
        """
        a, b = self.values(better, metric), self.values(than, metric)
        seeds = sorted(a.keys() & b.keys())
        if not seeds:
            raise KeyError(f"arms {better!r} and {than!r} share no seed for metric {metric!r}")
        pairs = np.array([(a[seed], b[seed]) for seed in seeds])
        # inf - inf is nan, which is not more than anything.
        with np.errstate(invalid="ignore"):
            differences = pairs[:, 0] - pairs[:, 1]
            error = differences.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
        holds = bool(np.isfinite(pairs).all() and differences.mean() > error)
        self._claims.append(
            {
                "text": text,
                "holds": holds,
                "metric": metric,
                "value": float(pairs[:, 0].mean()),
                "against": float(pairs[:, 1].mean()),
                "difference": float(differences.mean()),
                "spread": float(error),
                "seeds": len(seeds),
            }
        )
        return holds

    def figure(self, name: str, picture: np.ndarray) -> None:
        """Keeps a picture, uint8 [H, W, 3], to be written as NAME-name.png."""
        self._figures[name] = picture

    def write(self) -> str:
        """Writes the evidence, null for what is not finite, and returns the path of the JSON
        file.
        """
        # An experiment of the user's own is named by its path.
        place = os.path.join(self.results, Path(self.config.slug).stem)
        for name, picture in self._figures.items():
            pictures.save_png(f"{place}-{name}.png", picture)
        path = f"{place}.json"
        files.write_json(
            path,
            {
                "slug": self.config.slug,
                "variant": self.config.variant,
                "config": configs.flat(self.config),
                "environment": environment(),
                "records": [_finite(record) for record in self._records],
                "claims": [_finite(claim) for claim in self._claims],
            },
        )
        return path


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with None for what JSON has no number for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
