"""Evidence as pictures: arms side by side with their seeds, and curves with bands."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from bigr_jax.lab import evidence
from bigr_jax.lab.evidence import number, sentence

# The colours of Okabe and Ito, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#000000")
HOLDS, FAILS, INK = "#00704F", "#B03A2E", "#303030"
DPI = 150
COLUMNS = 3
# Inches: a panel's width, an arm's row, a panel's title and axis, a line of a claim.
PANEL, ROW, FRAME, LINE = 3.3, 0.34, 0.85, 0.2
LABEL = 34


def overview(
    title: str, records: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]] = ()
) -> np.ndarray:
    """Returns a panel per metric, an arm per row with a dot per seed and their mean, above the
    claims and their figures.

    Metrics "probe/0", "probe/1" ... are points of one curve per arm. A metric that no claim speaks
    of and that is the same in all arms has no panel.

    records  {"arm", "metric", "seed", "value"}, in the order to show; value None: not finite
    claims   as `Lab.claim` writes them
    Returns uint8 [H, W, 3].
    """
    panels, curves = evidence.panels(records, claims)
    count = len(panels) + len(curves)
    columns = max(1, min(COLUMNS, count))
    rows = math.ceil(count / columns)
    shared = len({tuple(arms) for arms in panels.values()}) == 1
    names = {arm: _wrapped(arm) for arms in panels.values() for arm in arms}
    margin = 0.085 * max((len(x) for name in names.values() for x in name.split("\n")), default=0)
    width = max(columns * PANEL + margin * (1 if shared else columns), 6.5)
    tall = max((sum(_height(names[arm]) for arm in arms) for arms in panels.values()), default=0)
    lines = _claim_lines(claims, int(width * 14.5))
    above, below = rows * (tall + FRAME), 0.2 + LINE * len(lines)
    figure = Figure(figsize=(width, above + below + 0.3), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.09, h_pad=0.05)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    grid = figure.add_gridspec(2, 1, height_ratios=[max(above, 0.1), below])
    top, strip = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for place, (metric, arms) in enumerate(panels.items()):
        axes = top.add_subplot(rows, columns, place + 1)
        _panel(axes, metric, arms, names, labelled=not shared or place % columns == 0)
    for place, (metric, points) in enumerate(curves.items(), len(panels)):
        _curves(top.add_subplot(rows, columns, place + 1), metric, points, names)
    _strip(strip, lines, below)
    return _drawn(figure)


def lines(
    title: str,
    x: Sequence[float],
    curves: Mapping[str, np.ndarray],
    xlabel: str,
    ylabel: str,
) -> np.ndarray:
    """Returns curves over `x`, each the mean of its runs within a band of their standard deviation.

    curves  {name: [runs, len(x)] or [len(x)]}; values that are not finite are left out
    Returns uint8 [H, W, 3].
    """
    figure = Figure(figsize=(6.4, 4.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, runs) in enumerate(curves.items()):
        values = np.atleast_2d(np.asarray(runs, np.float64))
        mean, colour = values.mean(0), COLOURS[index % len(COLOURS)]
        axes.plot(x, mean, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
        if len(values) > 1:
            error = values.std(0, ddof=1)
            axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
    if all(float(value).is_integer() for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _clean(axes, grid="both")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if len(curves) > 1:
        # Beside the axes, where no curve can run through it.
        figure.legend(loc="outside lower left", ncols=min(len(curves), 3), frameon=False)
    return _drawn(figure)


def _curves(axes: Axes, metric: str, points: evidence.Points, names: Mapping[str, str]) -> None:
    order = list(names)
    for arm, values in points.items():
        colour = COLOURS[order.index(arm) % len(COLOURS)] if arm in names else COLOURS[-1]
        x = sorted(values)
        axes.plot(x, [np.mean(values[i]) for i in x], "o-", color=colour, ms=3.5, lw=1.2, label=arm)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{metric}/0, {metric}/1 ...: means", loc="left", fontsize=10, color=INK)
    # Room above the curves for what they are called.
    axes.margins(y=0.35)
    axes.legend(fontsize=6.5, frameon=False, loc="upper left", ncols=2)
    _clean(axes, grid="both")


def _panel(
    axes: Axes,
    metric: str,
    arms: Mapping[str, list[float]],
    names: Mapping[str, str],
    labelled: bool,
) -> None:
    order = list(names)
    places, at = [], 0.0
    for arm in arms:
        places.append(at + _height(names[arm]) / 2)
        at += _height(names[arm])
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for y, (arm, values) in zip(places, arms.items(), strict=True):
        colour = COLOURS[order.index(arm) % len(COLOURS)]
        kept = [value for value in values if math.isfinite(value)]
        # A little lower than the mean, which would hide them where they are close.
        axes.plot(kept, [y + 0.1] * len(kept), "o", color=colour, ms=4.5, alpha=0.55, mew=0)
        text = "not finite"
        if len(kept) == len(values):
            mean = float(np.mean(kept))
            spread = float(np.std(kept, ddof=1)) if len(kept) > 1 else 0.0
            axes.errorbar(mean, y, xerr=spread, fmt="D", color=colour, ms=5, capsize=2.5)
            text = number(mean) + f" ± {spread:.2g}" * (len(kept) > 1)
        axes.text(1.02, y, text, transform=beside, va="center", fontsize=8, color=INK)
    axes.set_ylim(at, 0)
    axes.set_yticks(places, [names[arm] for arm in arms] if labelled else [""] * len(arms))
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.08)
    axes.set_title(metric, loc="left", fontsize=10, color=INK)
    _clean(axes, grid="x")


def _clean(axes: Axes, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#A0A0A0")
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.grid(axis=grid, color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)


def _claim_lines(claims: Sequence[Mapping[str, Any]], width: int) -> list[tuple[str, str, bool]]:
    """Returns (text, colour, whether it is bold) of the lines below the panels."""
    found = []
    for claim in claims:
        said, colour = ("holds", HOLDS) if claim["holds"] else ("does not hold", FAILS)
        for part in textwrap.wrap(f"{said}: {claim['text']}", width - 8):
            found.append((part, colour, True))
        for part in textwrap.wrap(sentence(claim), width - 4):
            found.append((f"   {part}", INK, False))
    found.append(("dot: one seed; diamond: mean ± standard deviation over seeds", "#808080", False))
    return found


def _strip(strip: SubFigure, lines: Sequence[tuple[str, str, bool]], height: float) -> None:
    for index, (text, colour, bold) in enumerate(lines):
        y = 1 - (0.12 + LINE * index) / height
        weight = "bold" if bold else "normal"
        strip.text(0.01, y, text, va="top", fontsize=8.5, color=colour, fontweight=weight)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, LABEL)) or name


def _height(name: str) -> float:
    return ROW + 0.14 * name.count("\n")


def _drawn(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
