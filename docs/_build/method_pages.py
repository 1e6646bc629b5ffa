"""A page for each method, of its docstring, config, results and figures, and the table of all.

Where there is a page written by hand, docs/SLUG.md, it is the page: a card is put below its title,
and what was measured, the settings and the source at its end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from bigr_jax import config as configs
from bigr_jax import registry
from bigr_jax.lab import page, tables
from bigr_jax.lab.evidence import duration

OVERVIEW = "methods.md"
# Pages written by hand that are named after more than one method.
GUIDES = {"hydra": "mixers"}
INTRODUCTION = """# All methods

One file of at most 200 lines for each: the method, the baseline that it is said to beat, and the study that compares them.
A page holds what the method is, how to use it, every claim with its figures whether it holds or not, its settings, and
its source. How claims are compared: see the [glossary](glossary.md#evidence).

"""


class MethodFiles(NamedTuple):
    """A method and its page.

    page  path below docs/, written by hand or not
    """

    slug: str
    name: str
    page: str
    card: registry.Card


def methods(where: Path) -> list[MethodFiles]:
    """Returns the methods of a repository, by name."""
    return sorted(_methods(where), key=lambda method: method.name.lower())


@functools.cache
def _methods(where: Path) -> list[MethodFiles]:
    found = []
    for path in sorted((where / "experiments").glob("[!_]*.py")):
        card = registry.describe(str(path))
        name = card.title.partition(":")[0] or card.slug
        found.append(MethodFiles(card.slug, name, f"{GUIDES.get(card.slug, card.slug)}.md", card))
    return found


@functools.cache
def _results(where: Path) -> Mapping[str, Any]:
    return tables.read(str(where / "results"))


def pages(where: Path) -> dict[str, str]:
    """Returns {path: Markdown} of the table of all methods, and of the bare pages of the methods;
    of these, only those are wanted that nobody has written.
    """
    cards = [method.card for method in methods(where)]
    table = tables.summary(_results(where), cards, "../results")
    for method in methods(where):
        table = table.replace(f"](experiments/{method.slug}.py)", f"]({method.page})")
    bare = {method.page: f"# {method.card.title.rstrip('.')}\n" for method in methods(where)}
    return {OVERVIEW: f"{INTRODUCTION}{table}\n", **bare}


def completed(markdown: str, path: str, where: Path) -> str:
    """Returns the Markdown of a method's page with its card, evidence, settings and source; of any
    other page as it is.
    """
    for method in methods(where):
        if method.page == path:
            title, _, body = markdown.partition("\n")
            shown = body + "\n"
            found = _results(where).get(method.slug)
            parts = [title, _card(method, found), shown]
            if found is not None:
                parts.append(_evidence(method, found, shown))
            parts += [_settings(method, where), _source(method)]
            return "\n\n".join(parts)
    return markdown


def _card(method: MethodFiles, found: Mapping[str, Any] | None) -> str:
    card = method.card
    source = card.doc.partition("\n\n")[0].partition(": ")[2].rstrip(".")
    linked = re.sub(
        r"arXiv (\d{4}\.\d+)", r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', escape(source)
    )
    rows = {
        "What": linked,
        "The paper's claim": escape(card.claim),
        "What was done": escape(card.evidence),
        "Command": f"<code>{escape(card.command)}</code>",
        "Outcome": "not proved yet",
    }
    if found is not None:
        held = sum(claim["holds"] for claim in found["claims"])
        rows["Outcome"] = (
            f'<a href="#every-claim">{held} of {len(found["claims"])} claims hold</a>, '
            f"{duration(found['seconds'])}"
        )
    lines = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows.items())
    return f'<dl class="card">{lines}</dl>'


def _evidence(method: MethodFiles, found: Mapping[str, Any], shown: str) -> str:
    slug = method.slug
    seeds = ", ".join(map(str, found["seeds"]))
    versions = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    names = [slug, *(f"{slug}-{name}" for name in found.get("figures", ()))]
    # Each opens in its own size; those that the page shows already are not repeated.
    figures = [
        f'<a href="results/{name}.png"><img alt="{name}" src="results/{name}.png"></a>'
        for name in names
        if f"/{name}.png" not in shown
    ]
    claims = "".join(page.claim_row(claim) for claim in found["claims"])
    command = f"bigr prove --config={found['slug']}:{found['variant']}"
    return "\n\n".join(
        [
            "## Every claim",
            "The bar is the mean gain over the seeds and its 95 % interval, the dashed line the "
            "margin that it must exceed; to the right is better.",
            f'<ol class="claims">{claims}</ol>',
            *figures,
            f'<details class="abstract"><summary>All figures, mean ± deviation over seeds'
            f"</summary>{page.arms_table(found)}</details>",
            f"`{command}`, {duration(found['seconds'])}, seeds {seeds}; {versions}.",
        ]
    )


def _settings(method: MethodFiles, where: Path) -> str:
    """Returns the variants side by side: the settings in which they differ."""
    path = where / "configs" / f"{method.slug}.py"
    variants = registry.run_file(path).VARIANTS
    default = configs.DEFAULT_VARIANT if configs.DEFAULT_VARIANT in variants else variants[0]
    order = [default, *(name for name in variants if name != default)]
    loaded = {name: configs.load(f"{path}:{name}") for name in order}
    changed = {
        name: {change.key: change.after for change in configs.diff(loaded[default], loaded[name])}
        for name in order
    }
    keys = [key for key in configs.flat(loaded[default]) if any(key in c for c in changed.values())]
    keys += sorted({key for found in changed.values() for key in found} - set(keys))
    first = configs.flat(loaded[default])
    head = "".join(f"<th>{escape(name)}</th>" for name in order)
    rows = [f"<tr><th>setting</th>{head}</tr>"]
    for key in keys:
        if key == "variant":
            continue
        cells = [_value(first.get(key, configs.ABSENT))]
        cells += [_value(changed[name][key]) if key in changed[name] else "" for name in order[1:]]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td><code>{escape(key)}</code></td>{row}</tr>")
    return (
        "## Its settings\n\n"
        f"What the variants change; an empty cell is as in `{default}`. `bigr show "
        f"{method.slug}:{default}` lists all settings.\n\n"
        f'<div class="wide settings"><table>{"".join(rows)}</table></div>'
    )


def _value(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return escape(text)


def _source(method: MethodFiles) -> str:
    source = Path(method.card.path).read_text("utf-8").rstrip()
    folder = f"experiments/{method.slug}.py"
    code = f'```python title="{folder}"\n{source}\n```'
    indented = "\n".join(f"    {line}" if line else "" for line in code.splitlines())
    return (
        f'## The recipe\n\n??? example "{folder}, {source.count(chr(10)) + 1} lines"\n{indented}\n'
    )
