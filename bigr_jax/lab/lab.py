"""What a study is given: it trains arms, records what was measured, and states what that shows."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from bigr_jax import config as configs
from bigr_jax import files, pictures, progress, registry
from bigr_jax.errors import UserError, one_of
from bigr_jax.lab import arms, evidence, plots
from bigr_jax.train import hosts
from bigr_jax.train.environment import environment
from bigr_jax.train.run import Run

Measured = dict[str, Any]


class Lab:
    """The arms of one experiment in one work directory; whatever is trained and measured already is
    not done again.

    config   the settings that every arm starts from
    workdir  where the arms are trained
    results  folder that gets NAME.json, NAME.png and NAME-*.png from `write`; NAME is that of the
             config
    """

    def __init__(self, config: ConfigDict, workdir: str, results: str) -> None:
        self.config, self.workdir, self.results = config, workdir, results
        self._source = Path(registry.describe(config.slug).path).read_text("utf-8")
        self._left_out: set[str] = set()
        self._arms: dict[str, tuple[str | None, dict[str, str]]] = {}
        self._base: Run | None = None
        self._directories: dict[str, None] = {}
        self._records: dict[tuple[str, str, int], float] = {}
        self._claims: list[dict[str, Any]] = []
        self._figures: dict[str, None] = {}
        self._seconds = 0.0

    @property
    def seeds(self) -> range:
        """The seeds that the config asks for, `study.seeds` of them.

        Raises UserError where it asks for none.
        """
        count = configs.Audited(self.config).study.seeds
        if count < 1:
            raise UserError(f"config.study.seeds={count} must be 1 or more")
        return range(count)

    def arms(self, known: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
        """Returns those of a study's arms, {name: changes}, that `study.arms` names; () names all.

        Claims about the others are not stated. Raises UserError for a name that is none of them.
        """
        wanted = configs.Audited(self.config).study.arms
        for name in wanted:
            if name not in known:
                raise one_of("config.study.arms", name, known)
        self._left_out = set(known) - set(wanted or known)
        return {name: dict(known[name]) for name in known if name not in self._left_out}

    def train(
        self,
        arm: str,
        changes: Mapping[str, str] | None = None,
        seed: int = 0,
        stage: str | None = None,
    ) -> Run:
        """Trains the config with `changes` ({"model.depth": "2"}) and a seed, and returns the run.

        stage  None: the arm trains all stages in a directory of its own. Else the arm is that stage
               alone, and the stages it needs are those of one base run, the unchanged config at its
               own seed, which is trained at first use

        Arms that differ only in settings that training does not see, such as `sample.`, share one
        training.
        Raises UserError, naming arm and seed, for a mistake in the changes and for a loss that is
        not finite; ValueError for an arm that was something else before.
        """
        found = stage, dict(changes or {})
        if self._arms.get(arm, found) != found:
            raise ValueError(f"arm {arm!r} was {self._arms[arm]} before, now it is {found}")
        run = self.run(arm, changes, seed, stage)
        self._arms[arm] = found
        try:
            if stage is not None and self._base is not None:
                for need in run.needs(stage):
                    self._fit(self._base, need)
            for name in run.own:
                self._fit(run, name)
        except UserError as error:
            raise _named(arm, seed, error) from None
        return run

    def run(
        self,
        arm: str,
        changes: Mapping[str, str] | None = None,
        seed: int = 0,
        stage: str | None = None,
    ) -> Run:
        """Returns what `train` would train, and trains nothing; raises as `train` does of a mistake
        in the changes.
        """
        try:
            config = arms.changed(self.config, changes or {}, seed)
            where = self._directory(config, stage)
            if stage is None:
                return Run(config, where)
            self._refuse_other_stages(config, stage)
            if self._base is None:
                self._base = Run(self.config, self._directory(self.config, None))
            return Run(config, where, base=self._base, stage=stage)
        except UserError as error:
            raise _named(arm, seed, error) from None

    def measure(
        self, arm: str, seed: int, function: Callable[[], Mapping[str, float]]
    ) -> dict[str, float]:
        """Returns and records what `function` measures, {metric: value}.

        It is called only where the work directory does not have these values yet, measured with the
        same settings of that arm and the same text of the experiment.
        """
        stage, changes = self._arms.get(arm, (None, {}))
        settings = arms.changed(self.config, changes, seed)
        mark = arms.fingerprint(settings, stage, self._source)
        path = os.path.join(self.workdir, "measured.json")

        def kept() -> Measured | None:
            found = (files.read_json(path) or {}).get(arm, {}).get(str(seed), {})
            known = found.get("settings") == mark and all(map(self._is_drawn, found["figures"]))
            return found if known else None

        entry = hosts.first(kept)
        before = entry is not None
        if not before:
            entry = self._measured(mark, function)
            if jax.process_index() == 0:
                everything = files.read_json(path) or {}
                everything.setdefault(arm, {})[str(seed)] = entry
                files.write_json(path, everything)
        how = "measured before" if before else f"measured in {entry['seconds']:.1f} s"
        _say(f"{arm}, seed {seed}: {how}")
        self._figures |= dict.fromkeys(entry["figures"])
        self._seconds += entry["seconds"]
        for metric, value in entry["values"].items():
            self.record(arm, metric, value, seed)
        return entry["values"]

    def record(self, arm: str, metric: str, value: float, seed: int = 0) -> None:
        """Keeps one measured value of one arm and seed; the last one counts."""
        self._records[arm, metric, seed] = float(value)

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Returns {seed: value} of what was recorded.

        Raises KeyError where nothing was.
        """
        found = {
            seed: value
            for (name, title, seed), value in self._records.items()
            if (name, title) == (arm, metric)
        }
        if not found:
            raise KeyError(f"nothing recorded of metric {metric!r} for arm {arm!r}")
        return found

    def claim(
        self,
        text: str,
        metric: str,
        better: str,
        than: str | float,
        lower: bool = False,
        margin: float = 0.0,
    ) -> bool:
        """States that an arm's metric is better than another arm's, or than a number, and returns
        whether it is.

        lower   whether a lower value is the better one
        margin  by how much better at least

        It holds when the mean of the differences, paired by seed, is better than the margin with
        one-sided confidence of 95 % by Student's t over the seeds: mean - t * standard error >
        margin. Of a single pair the difference alone counts. A value that is not finite supports
        nothing. About an arm that was left out, see `arms`, nothing is stated.
        Raises KeyError where nothing was recorded, or no seed of both.
        """
        if self._left_out & {better, than}:
            return False
        values = self.values(better, metric)
        against = (
            self.values(than, metric)
            if isinstance(than, str)
            else dict.fromkeys(values, float(than))
        )
        if not values.keys() & against.keys():
            raise KeyError(f"arms {better!r} and {than!r} share no seed for metric {metric!r}")
        found = evidence.compare(values, against, lower, margin)
        said = {"text": text, "holds": found.pop("holds"), "metric": metric, "better": better}
        than = than if isinstance(than, str) else float(than)
        said |= {"than": than, "lower": lower, "margin": float(margin)}
        self._claims.append({**said, **found})
        return bool(said["holds"])

    def figure(self, name: str, picture: np.ndarray) -> None:
        """Keeps a picture, uint8 [H, W, 3], at once; `write` puts it into NAME-name.png."""
        self._figures[name] = None
        if jax.process_index() == 0:
            pictures.save_png(self._place(name), picture)

    def write(self) -> str:
        """Writes the evidence, null for what is not finite, and returns the path of the JSON file.

        It holds no date, no path and no name of the machine, so that it can be published.
        """
        # An experiment of the user's own is named by its path.
        slug = Path(self.config.slug).stem
        place = os.path.join(self.results, slug)
        found = self.summary()
        if jax.process_index():
            return f"{place}.json"
        for name in self._figures:
            with Image.open(self._place(name)) as image:
                pictures.save_png(f"{place}-{name}.png", np.asarray(image))
        title = f"{slug}:{self.config.variant}"
        with progress.slow(f"drawing {place}.png"):
            picture = plots.overview(title, found["records"], found["claims"])
        pictures.save_png(f"{place}.png", picture)
        files.write_json(f"{place}.json", found)
        return f"{place}.json"

    def summary(self) -> dict[str, Any]:
        """Returns what `write` writes as JSON; `claims` are in the order in which they were stated.

        The seconds are those of every training and measurement that the study rests on, also of
        those that an earlier call did.
        """
        slug = Path(self.config.slug).stem
        there = environment()
        del there["command"]
        return {
            "slug": slug,
            "variant": self.config.variant,
            "seeds": sorted({seed for _, _, seed in self._records}),
            "seconds": round(self._seconds + sum(map(_seconds, self._directories)), 1),
            "claims": [_finite(claim) for claim in self._claims],
            "arms": {arm: changes for arm, (_, changes) in self._arms.items()},
            "records": [
                _finite({"arm": arm, "metric": metric, "seed": seed, "value": value})
                for (arm, metric, seed), value in self._records.items()
            ],
            "config": {**configs.flat(self.config), "slug": slug},
            "environment": there,
            "figures": sorted(self._figures),
        }

    def _directory(self, config: ConfigDict, stage: str | None) -> str:
        return os.path.join(self.workdir, arms.directory(self.config, config, stage))

    def _refuse_other_stages(self, config: ConfigDict, stage: str) -> None:
        for key in (change.key for change in configs.diff(self.config, config)):
            if key.startswith("train.") and not key.startswith(f"train.{stage}."):
                raise UserError(f"config.{key} is none of stage {stage!r}, which alone is trained")

    def _fit(self, run: Run, name: str) -> None:
        self._directories[run.workdir] = None
        if run.is_measured(name):
            return
        _say(f"{name} in {run.workdir}")
        with run.writing():
            run.write_description()
            # What an arm has to show is for the study to ask, under the arm's own settings.
            run.train(name, report=False)

    def _measured(self, mark: str, function: Callable[[], Mapping[str, float]]) -> Measured:
        before, self._figures = self._figures, {}
        begin = time.perf_counter()
        with progress.slow("measuring what was trained"):
            values = {metric: float(value) for metric, value in function().items()}
        seconds = round(time.perf_counter() - begin, 3)
        drawn = list(self._figures)
        self._figures = before
        return {"settings": mark, "seconds": seconds, "values": values, "figures": drawn}

    def _place(self, name: str) -> str:
        return os.path.join(self.workdir, "figures", f"{name}.png")

    def _is_drawn(self, name: str) -> bool:
        return os.path.exists(self._place(name))


def _seconds(workdir: str) -> float:
    found = files.read_json(os.path.join(workdir, "results.json")) or {"stages": {}}
    return sum(entry["seconds"] or 0.0 for entry in found["stages"].values())


def _named(arm: str, seed: int, error: UserError) -> UserError:
    return UserError(f"arm {arm!r}, seed {seed}: {error}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with None for what JSON has no number for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
