"""What was proved, as one page of HTML that needs nothing beside itself."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from scipy import special

from bigr_jax.lab.evidence import CONFIDENCE, duration, number, panels, sentence
from bigr_jax.lab.tables import cells
from bigr_jax.registry import Card

Found = Mapping[str, Any]

# The width of the picture of a claim, and of what lies at either side of it.
_WIDE, _PAD = 240, 12
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5d6670; --line: #d9dee3; --back: #fff;
  --card: #f6f8fa; --yes: #00704f; --no: #b03a2e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #333a41;
  --back: #14171a; --card: #1c2126; --yes: #3ecf9a; --no: #f08a7d; }
  img { filter: brightness(.92); } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--back); }
main, header { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; } h1 { margin: 0 0 4px; font-size: 30px; } p { margin: 8px 0; }
h2 { margin: 0; font-size: 22px; } .soft { color: var(--soft); font-size: 14px; }
nav { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 10px;
  margin: 20px 0 36px; }
nav a { display: block; padding: 10px 12px; border: 1px solid var(--line); border-radius: 8px;
  color: inherit; text-decoration: none; background: var(--card); }
nav a:hover, nav a:focus { border-color: var(--soft); }
.share { height: 6px; margin-top: 6px; border-radius: 3px; background: var(--line); }
.share i { display: block; height: 100%; border-radius: 3px; background: var(--yes); }
section { padding: 28px 0; border-top: 1px solid var(--line); }
ol { list-style: none; padding: 0; margin: 16px 0; }
li { display: grid; grid-template-columns: 26px 1fr 250px; gap: 10px; align-items: center;
  padding: 8px 0; border-top: 1px solid var(--line); }
@media (max-width: 720px) { li { grid-template-columns: 26px 1fr; } li svg { display: none; } }
.yes { color: var(--yes); } .no { color: var(--no); } .mark { font-weight: 700; font-size: 18px; }
svg { color: var(--soft); } svg .yes { stroke: var(--yes); fill: var(--yes); }
svg .no { stroke: var(--no); fill: var(--no); }
img { max-width: 100%; margin: 12px 0; border: 1px solid var(--line); border-radius: 6px;
  background: #fff; }
details { margin: 10px 0; } summary { cursor: pointer; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; }
td, th { padding: 4px 10px; text-align: right; border-top: 1px solid var(--line);
  font-variant-numeric: tabular-nums; } td:first-child, th:first-child { text-align: left; }
code { padding: 2px 6px; border-radius: 4px; background: var(--card); font-size: 14px; }
"""
_RULE = """A claim holds when the mean of the differences, paired by seed, is better than its margin
with one-sided confidence of 95 %. The bar beside it is that mean and its interval, the dashed line
the margin; to the right is better. Numbers are of small runs on small data, not those of the
papers."""


def page(found: Mapping[str, Found], cards: Mapping[str, Card], folder: str) -> str:
    """Returns the HTML of all that was proved, pictures included.

    found   {slug: evidence} as `lab.tables.read` gives it
    cards   {slug: what the experiment says of itself}
    folder  of the pictures NAME.png and NAME-*.png; one that is missing is left out
    """
    claims = [claim for content in found.values() for claim in content["claims"]]
    held = sum(claim["holds"] for claim in claims)
    counted = f"{len(found)} method{'s' * (len(found) != 1)}, {held} of {len(claims)} claims hold"
    sections = [_section(slug, content, cards.get(slug), folder) for slug, content in found.items()]
    links = [_link(slug, content, cards.get(slug)) for slug, content in found.items()]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>bigr_jax: what was proved</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            f"<header><h1>What was proved</h1><p>{counted}.</p>",
            f'<p class="soft">{_RULE}</p><nav>',
            *links,
            "</nav></header><main>",
            *sections,
            "</main></body></html>",
            "",
        ]
    )


def claim_row(claim: Found) -> str:
    """Returns a claim as an item of a list in HTML: its mark, text, figures, and its interval."""
    kind, mark, said = ("yes", "✓", "holds") if claim["holds"] else ("no", "✗", "does not hold")
    return (
        f'<li><span class="mark {kind}" title="{said}">{mark}</span><span>{escape(claim["text"])}'
        f'<br><span class="soft">{escape(sentence(claim))}</span></span>{_interval(claim)}</li>'
    )


def arms_table(found: Found) -> str:
    """Returns a table in HTML of the arms: mean ± standard deviation over seeds of every metric."""
    metrics, _ = panels(found["records"], found["claims"])
    arms = dict.fromkeys(record["arm"] for record in found["records"])
    head = "".join(f"<th>{escape(metric)}</th>" for metric in metrics)
    rows = [f"<tr><th>arm</th>{head}</tr>"]
    for arm in arms:
        row = "".join(f"<td>{cells(values.get(arm, []))}</td>" for values in metrics.values())
        rows.append(f"<tr><td>{escape(arm)}</td>{row}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _name(slug: str, card: Card | None) -> str:
    return escape(card.title.partition(":")[0] if card else slug)


def _link(slug: str, found: Found, card: Card | None) -> str:
    claims = found["claims"]
    held = sum(claim["holds"] for claim in claims)
    share = 100 * held / max(1, len(claims))
    return (
        f'<a href="#{escape(slug)}"><b>{_name(slug, card)}</b><br><span class="soft">{held} of '
        f'{len(claims)} claims hold</span><div class="share"><i style="width:{share:.0f}%"></i>'
        "</div></a>"
    )


def _section(slug: str, found: Found, card: Card | None, folder: str) -> str:
    parts = [f'<section id="{escape(slug)}"><h2>{_name(slug, card)}</h2>']
    if card is not None:
        parts.append(f'<p class="soft">{escape(card.doc.partition(chr(10) * 2)[0])}</p>')
        parts.append(f"<p><b>The paper's claim.</b> {escape(card.claim)}</p>")
        parts.append(f"<p><b>What was done.</b> {escape(card.evidence)}</p>")
    parts += ["<ol>", *map(claim_row, found["claims"]), "</ol>"]
    for name in (*(f"{slug}-{name}" for name in found.get("figures", ())), slug):
        parts.append(_picture(Path(folder) / f"{name}.png", name))
    seeds = ", ".join(map(str, found["seeds"]))
    versions = ", ".join(f"{name} {value}" for name, value in found["environment"].items())
    command = f"bigr prove --config={found['slug']}:{found['variant']}"
    parts += [
        f"<details><summary>All figures</summary>{arms_table(found)}</details>",
        f'<p class="soft"><code>{escape(command)}</code> {duration(found["seconds"])}, seeds '
        f"{seeds}; {escape(versions)}</p></section>",
    ]
    return "\n".join(parts)


def _interval(claim: Found) -> str:
    """Returns the gain with its one-sided interval beside the margin, as SVG; "" of no number."""
    difference, spread = claim["difference"], claim["spread"]
    if difference is None or spread is None:
        return "<span></span>"
    gain = -difference if claim["lower"] else difference
    freedom = claim["seeds"] - 1
    error = spread * float(special.stdtrit(freedom, CONFIDENCE)) if freedom else 0.0
    low, high, margin = gain - error, gain + error, claim["margin"]
    ends = [low, high, margin, 0.0]
    span = max(ends) - min(ends)
    if not math.isfinite(span) or span == 0:
        return "<span></span>"

    def at(value: float) -> str:
        return f"{_PAD + (value - min(ends)) / span * (_WIDE - 2 * _PAD):.1f}"

    kind = "yes" if claim["holds"] else "no"
    edge = f'<line x1="{at(margin)}" x2="{at(margin)}" y1="2" y2="26"'
    return (
        f'<svg width="{_WIDE}" height="28" role="img" aria-label="gain {number(gain)}">'
        f'<line x1="0" x2="{_WIDE}" y1="14" y2="14" stroke="currentColor" stroke-opacity=".25"/>'
        f'{edge} stroke="currentColor" stroke-dasharray="3 3"/>'
        f'<line class="{kind}" x1="{at(low)}" x2="{at(high)}" y1="14" y2="14" stroke-width="4"/>'
        f'<circle class="{kind}" cx="{at(gain)}" cy="14" r="5"/></svg>'
    )


def _picture(path: Path, name: str) -> str:
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(name)}" loading="lazy" src="data:image/png;base64,{data}">'
