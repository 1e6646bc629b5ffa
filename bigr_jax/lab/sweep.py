"""Ablations from the command line: every combination of settings, measured alike."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax.errors import UserError
from bigr_jax.lab.evidence import number
from bigr_jax.lab.lab import Lab

CLOSING = {"(": ")", "[": "]", "{": "}"}
# Words in the names of metrics whose lower value is the better one.
LOWER = (
    *("loss", "error", "distance", "frechet", "kernel", "fid", "mse"),
    *("nll", "perplexity", "bits", "rank"),
)


class Sweep(NamedTuple):
    """What is compared.

    combinations  {arm: {key: text}}
    seeds         of every arm
    """

    combinations: Mapping[str, Mapping[str, str]]
    seeds: tuple[int, ...]


def parse(words: Sequence[str], config: ConfigDict) -> Sweep:
    """Returns the combinations of words such as "model.depth=2,4" and "seed=0,1".

    A comma within brackets or quotes is part of a value. Without a list of seeds, the config's own
    is taken.
    Raises UserError, before anything is trained, for a key that is no setting, for a value of
    another type, for a list that is empty, and for what is given twice.
    """
    axes: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is no list of values; legal: KEY=VALUE,VALUE")
        if key in axes:
            raise UserError(f"{key} is given twice")
        axes[key] = split(key, text)
    if not axes:
        raise UserError("nothing to compare; name settings and values: model.depth=2,4 seed=0,1")
    for key, texts in axes.items():
        seen: dict[str, str] = {}
        for text in texts:
            value = repr(configs.flat(configs.override(config, {key: text}))[key])
            if value in seen:
                raise UserError(f"{key}: {seen[value]} and {text} are the same value")
            seen[value] = text
    seeds = tuple(int(text) for text in axes.pop("seed", [str(config.seed)]))
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return Sweep({spelled(changes): changes for changes in chosen}, seeds)


def split(key: str, text: str) -> list[str]:
    """Returns the values in "a,(1, 2),'b,c'": a, (1, 2) and b,c. Raises UserError for an empty one
    and for a bracket or quote without its partner.
    """
    parts, open_until = [""], ""
    for letter in text:
        if letter == "," and not open_until:
            parts.append("")
            continue
        parts[-1] += letter
        if open_until and letter == open_until[-1]:
            open_until = open_until[:-1]
        elif letter in "\"'" and open_until[-1:] not in ("'", '"'):
            open_until += letter
        elif letter in CLOSING and open_until[-1:] not in ("'", '"'):
            open_until += CLOSING[letter]
    if open_until:
        raise UserError(f"{key}={text} lacks a closing {open_until[-1]}")
    values = [part.strip() for part in parts]
    if not all(values):
        raise UserError(f"{key}={text} has an empty value; legal: {key}=VALUE,VALUE")
    return [value[1:-1] if _is_quoted(value) else value for value in values]


def spelled(changes: Mapping[str, str]) -> str:
    """Returns the name of an arm with these changes."""
    return ", ".join(f"{key}={text}" for key, text in changes.items()) or "unchanged"


def run(lab: Lab, sweep: Sweep, stage: str | None) -> dict[str, Any]:
    """Trains and measures every combination and returns what was found, for JSON.

    stage  the only one that is trained for each, or None: all are, and the last one is measured

    Raises UserError, before anything is trained, for settings that the experiment refuses.
    """
    for arm, changes in sweep.combinations.items():
        lab.run(arm, changes, sweep.seeds[0], stage)
    measured = stage or ""
    for arm, changes in sweep.combinations.items():
        for seed in sweep.seeds:
            trained = lab.train(arm, changes, seed, stage)
            measured = trained.own[-1]
            lab.measure(arm, seed, functools.partial(trained.measured, measured))
    found = lab.summary()
    kept = ("slug", "variant", "seeds", "seconds", "arms", "records", "config", "environment")
    return {"stage": measured, **{name: found[name] for name in kept}}


def table(found: Mapping[str, Any]) -> str:
    """Returns aligned rows, one per combination: its settings, and of each metric mean ± standard
    deviation over seeds; the best of a column is marked with a star.
    """
    keys = list(dict.fromkeys(key for changes in found["arms"].values() for key in changes))
    names = list(dict.fromkeys(record["metric"] for record in found["records"]))
    columns = [_column(found, name) for name in names]
    head = [*keys, *(f"{name} {'↓' if is_lower(name) else '↑'}" for name in names)]
    rows = [
        [*(changes.get(key, "") for key in keys), *(column[place] for column in columns)]
        for place, changes in enumerate(found["arms"].values())
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([aligned[0], "  ".join("-" * width for width in widths), *aligned[1:]])


def is_lower(metric: str) -> bool:
    """Whether a lower value of a metric is the better one, by its name."""
    return any(word in metric.lower() for word in LOWER)


def _column(found: Mapping[str, Any], metric: str) -> list[str]:
    cells, means = [], []
    for arm in found["arms"]:
        values = [
            math.nan if record["value"] is None else record["value"]
            for record in found["records"]
            if (record["arm"], record["metric"]) == (arm, metric)
        ]
        mean = float(np.mean(values)) if values else math.nan
        several = len(values) > 1 and math.isfinite(mean)
        spread = f" ± {np.std(values, ddof=1):.2g}" if several else ""
        means.append(-mean if is_lower(metric) else mean)
        cells.append(number(mean) + spread if values else "")
    best = max((mean for mean in means if math.isfinite(mean)), default=math.nan)
    differ = len(set(means)) > 1
    return [
        f"{cell} *" if differ and mean == best else cell
        for cell, mean in zip(cells, means, strict=True)
    ]


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
