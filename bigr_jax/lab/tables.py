"""What was proved, as Markdown: a section per experiment, and one table of all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigr_jax import files
from bigr_jax.errors import UserError
from bigr_jax.lab.evidence import duration, number, panels, sentence
from bigr_jax.registry import Card

HEAD = ("method", "the paper's claim", "our figure", "holds", "command", "time")
SHORT = ("method", "what it is", "its first claim here", "claims that hold", "proved in")
NEEDED = {"slug", "claims", "records", "seconds"}
BEGIN, END = "<!-- bigr report: begin -->", "<!-- bigr report: end -->"
INTRODUCTION = f"""# Experiments

One file per method: its stages, and the study that shows what it claims. The table is written by
`bigr report` from [results]({{results}}/README.md).

{BEGIN}
{END}
"""
RULE = """A claim holds when the mean of the differences, paired by seed, is better than its margin
with one-sided confidence of 95 % by Student's t over the seeds; ± is the standard error of that
mean. Numbers are of small runs on small data, not those of the papers.
"""

Found = Mapping[str, Any]


def read(folder: str) -> dict[str, Any]:
    """Returns {slug: evidence} of the JSON files in a folder, sorted by name.

    Raises UserError for a file that `bigr prove` did not write.
    """
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        try:
            content = files.read_json(path)
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        if not isinstance(content, dict) or not content.keys() >= NEEDED:
            raise UserError(f"{path} is not what `bigr prove` writes")
        found[path.stem] = content
    return found


def sections(found: Mapping[str, Found], cards: Mapping[str, Card]) -> str:
    """Returns results/README.md: every claim of every experiment with its figures.

    cards  {slug: what the experiment says of itself}
    """
    parts = [_section(slug, content, cards.get(slug)) for slug, content in found.items()]
    return "\n".join(["# Results\n", "Written by `bigr report`.", RULE, *parts])


def overview(found: Mapping[str, Found], cards: Iterable[Card], results: str) -> str:
    """Returns the table of all experiments, proved or not.

    results  path from the table to the folder of results
    """
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [_row(card, found.get(card.slug), results) for card in cards]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def summary(found: Mapping[str, Found], cards: Iterable[Card], results: str) -> str:
    """Returns the short table of all experiments, for a page beside the folder of experiments.

    results  path from the page to the folder of results
    """
    rows = [SHORT, ("---",) * len(SHORT)]
    rows += [_short(card, found.get(card.slug), results) for card in cards]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def inserted(path: str, table: str, results: str) -> str:
    """Returns the text of a file with the table between its two marks; that of a new file where
    there is none.

    Raises UserError where the file has no marks.
    """
    text = INTRODUCTION.format(results=results)
    if os.path.exists(path):
        text = Path(path).read_text("utf-8")
        if not has_marks(path):
            raise UserError(f"{path} has no place for the table; add the lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def has_marks(path: str) -> bool:
    """Whether there is such a file, with the two marks between which a table goes."""
    if not os.path.exists(path):
        return False
    _, _, rest = Path(path).read_text("utf-8").partition(BEGIN)
    return END in rest


def cells(values: Sequence[float]) -> str:
    """Returns the mean ± standard deviation of one metric of one arm over its seeds, "" of none."""
    if not values:
        return ""
    mean = float(np.mean(values))
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 and np.isfinite(mean) else ""
    return number(mean) + spread


def _section(slug: str, found: Found, card: Card | None) -> str:
    lines = [f"## {slug}\n"]
    if card is not None:
        lines.append(f"{card.title}\n\nThe paper's claim: {card.claim}\n")
    for claim in found["claims"]:
        said = "holds" if claim["holds"] else "does not hold"
        lines.append(f"- **{said}**: {claim['text']}  \n  {sentence(claim)}")
    lines.append("\n" + _arms(found))
    names = [slug, *(f"{slug}-{name}" for name in found.get("figures", ()))]
    lines.append("\n" + "\n".join(f"![{name}]({name}.png)" for name in names) + "\n")
    versions = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    seeds = ", ".join(map(str, found["seeds"]))
    lines.append(f"`{_command(found)}`, {duration(found['seconds'])}, seeds {seeds}  ")
    lines.append(f"{versions}\n")
    return "\n".join(lines)


def _arms(found: Found) -> str:
    """Returns a table of the arms: mean ± standard deviation over seeds of every metric."""
    metrics, _ = panels(found["records"], found["claims"])
    arms = dict.fromkeys(record["arm"] for record in found["records"])
    rows = [["arm", *metrics], ["---"] * (1 + len(metrics))]
    for arm in arms:
        rows.append([arm, *(cells(values.get(arm, [])) for values in metrics.values())])
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def _row(card: Card, found: Found | None, results: str) -> tuple[str, ...]:
    method = f"[{card.title.partition(':')[0] or card.slug}]({Path(card.path).name})"
    if found is None:
        return method, card.claim, "not proved yet", "", f"`{card.command}`", ""
    claims: Sequence[Found] = found["claims"]
    count = sum(claim["holds"] for claim in claims)
    figure = f"[{_figure(claims[0]) if claims else 'no claim'}]({results}/README.md#{card.slug})"
    holds = f"{count} of {len(claims)}"
    command = f"`{_command(found)}`"
    return method, card.claim, figure, holds, command, duration(found["seconds"])


def _short(card: Card, found: Found | None, results: str) -> tuple[str, ...]:
    name, _, what = card.title.partition(": ")
    path = Path(card.path)
    method = f"[{name or card.slug}]({path.parent.name}/{path.name})"
    what = re.sub(r"arXiv (\d{4}\.\d+)", r"[\1](https://arxiv.org/abs/\1)", what.rstrip("."))
    if found is None or not found["claims"]:
        return method, what, "not proved yet", "", ""
    first: Found = found["claims"][0]
    said = f"{'yes' if first['holds'] else 'no'}: {first['text']}, {_figure(first)}"
    count = sum(claim["holds"] for claim in found["claims"])
    holds = f"[{count} of {len(found['claims'])}]({results}/README.md#{card.slug})"
    return method, what, said, holds, duration(found["seconds"])


def _figure(claim: Found) -> str:
    return f"{claim['metric']} {number(claim['value'])} against {number(claim['against'])}"


def _command(found: Found) -> str:
    return f"bigr prove --config={found['slug']}:{found['variant']}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
