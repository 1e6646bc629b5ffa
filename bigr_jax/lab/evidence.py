"""What a comparison of two arms shows: the rule by which a claim holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

CONFIDENCE = 0.95

Values = dict[str, dict[str, list[float]]]
Points = dict[str, dict[int, list[float]]]


def compare(
    values: Mapping[int, float],
    against: Mapping[int, float],
    lower: bool = False,
    margin: float = 0.0,
) -> dict[str, Any]:
    """Returns whether `values` are better than `against`, and by how much.

    values, against  {seed: value}; the seeds of both are compared pair by pair
    lower            whether the lower value is the better one
    margin           by how much at least
    Returns {"holds", "value", "against", "difference", "spread", "seeds"}: the means of both, the
    mean of value - against over the pairs, and its standard error. It holds when the mean gain
    exceeds the margin with one-sided confidence of 95 % by Student's t over the seeds,

        gain - t(0.95, seeds - 1) * spread > margin,

    or, where there is a single pair, when its difference does. A value that is not finite supports
    nothing. (Student, "The probable error of a mean", Biometrika 6, 1908.)
    Raises KeyError where no seed is in both.
    """
    seeds = sorted(values.keys() & against.keys())
    if not seeds:
        raise KeyError("no seed in common")
    pairs = np.array([(values[seed], against[seed]) for seed in seeds], np.float64)
    # inf - inf is nan, which is not more than anything.
    with np.errstate(invalid="ignore"):
        differences = pairs[:, 0] - pairs[:, 1]
        mean, error, quantile = float(differences.mean()), 0.0, 0.0
        if len(seeds) > 1:
            error = float(differences.std(ddof=1) / math.sqrt(len(seeds)))
            quantile = float(special.stdtrit(len(seeds) - 1, CONFIDENCE))
    gain = -mean if lower else mean
    return {
        "holds": bool(np.isfinite(pairs).all() and gain - quantile * error > margin),
        "value": float(pairs[:, 0].mean()),
        "against": float(pairs[:, 1].mean()),
        "difference": mean,
        "spread": error,
        "seeds": len(seeds),
    }


def sentence(claim: Mapping[str, Any]) -> str:
    """Returns the figures of a written claim, "score 0.91 against 0.85, difference 0.06 ± 0.01
    over 3 seeds".
    """
    seeds = f"{claim['seeds']} seed{'s' * (claim['seeds'] != 1)}"
    wanted = ", lower is better" * claim["lower"]
    margin = f", by more than {number(claim['margin'])}" * bool(claim["margin"])
    spread = f" ± {number(claim['spread'])}" * (claim["seeds"] > 1)
    return (
        f"{claim['metric']} {number(claim['value'])} against {number(claim['against'])}, "
        f"difference {number(claim['difference'])}{spread} over {seeds}{wanted}{margin}"
    )


def panels(
    records: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]
) -> tuple[Values, dict[str, Points]]:
    """Returns what is worth showing of the records: {metric: {arm: values over seeds}}, those
    metrics first of which claims speak, and {metric: {arm: {number: values}}} of numbered ones.

    records  {"arm", "metric", "seed", "value"}, value None: not finite
    Metrics "probe/0", "probe/1" ... are numbered. A metric that no claim speaks of and that is the
    same in all arms is left out.
    """
    single, numbered = _split(_by_metric(records))
    return _telling(single, {claim["metric"] for claim in claims}), numbered


def number(value: float | None) -> str:
    """Returns a measured value with four digits; what JSON has no number for is "not finite"."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Returns "48 s", "12 min" or "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _by_metric(records: Sequence[Mapping[str, Any]]) -> Values:
    """Returns {metric: {arm: values over seeds}}."""
    found: Values = {}
    for record in records:
        value = math.nan if record["value"] is None else float(record["value"])
        found.setdefault(record["metric"], {}).setdefault(record["arm"], []).append(value)
    # One order of the arms in all panels.
    order = list(dict.fromkeys(record["arm"] for record in records))
    return {
        metric: {arm: arms[arm] for arm in order if arm in arms} for metric, arms in found.items()
    }


def _split(panels: Values) -> tuple[Values, dict[str, Points]]:
    """Returns the metrics with an arm's values, and {metric: {arm: {number: values}}} of those that
    are numbered.
    """
    single: Values = {}
    numbered: dict[str, Points] = {}
    for metric, arms in panels.items():
        name, _, number = metric.rpartition("/")
        if not (name and number.isdecimal()):
            single[metric] = arms
            continue
        for arm, values in arms.items():
            numbered.setdefault(name, {}).setdefault(arm, {})[int(number)] = values
    return single, numbered


def _telling(panels: Values, claimed: set[str]) -> Values:
    """Returns the metrics that are claimed, then those in which arms differ."""
    ordered = sorted(panels, key=lambda metric: metric not in claimed)
    found = {}
    for metric in ordered:
        arms = panels[metric]
        alike = len(arms) > 1 and len({tuple(values) for values in arms.values()}) == 1
        if metric in claimed or not alike:
            found[metric] = arms
    return found
