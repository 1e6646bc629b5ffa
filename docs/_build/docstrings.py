"""A docstring of plain text as HTML: paragraphs, blocks of "name  meaning", formulas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

# "name  meaning", the meaning aligned behind two spaces or more.
_ALIGNED = re.compile(r"^(?P<name>\S+(?: \S+)*?) {2,}(?P<meaning>\S.*)$")
# "name: meaning" below a line such as "Attributes:".
_NAMED = re.compile(r"^(?P<name>[\w*, ]+): (?P<meaning>\S.*)$")
_CODE = re.compile(r"`([^`]+)`")
_PAPER = re.compile(r"\barXiv (\d{4}\.\d{4,5})\b")


def html(doc: str) -> str:
    """Returns a docstring, its indentation cleaned, as HTML that Markdown leaves as it is."""
    return "\n".join(
        part for block in re.split(r"\n\s*\n", doc) if block.strip() for part in _block(block)
    )


def inline(text: str) -> str:
    """Returns a line of text with `code` and the numbers of papers marked."""
    marked = _CODE.sub(r"<code>\1</code>", escape(text, quote=False))
    return _PAPER.sub(r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', marked)


def _block(block: str) -> Iterator[str]:
    """Yields the HTML of lines without an empty one among them."""
    lines = block.splitlines()
    while lines:
        indent = _indent(lines[0])
        entry = _entry(lines[0].strip(), indent)
        if entry:
            count = _entries_end(lines, indent)
            yield _list(lines[:count], indent)
        elif indent:
            count = next((i for i, line in enumerate(lines) if not _indent(line)), len(lines))
            shown = "\n".join(line[indent:] for line in lines[:count])
            yield f"<pre><code>{escape(shown)}</code></pre>"
        else:
            count = 1
            while count < len(lines) and not _indent(lines[count]) and not _entry(lines[count], 0):
                count += 1
            yield f"<p>{inline(' '.join(lines[:count]))}</p>"
        lines = lines[count:]


def _entry(line: str, indent: int) -> re.Match[str] | None:
    """Returns the name and meaning of an entry; "name: meaning" is one where it is indented."""
    return _ALIGNED.match(line) or (_NAMED.match(line) if indent else None)


def _entries_end(lines: list[str], indent: int) -> int:
    """Returns how many lines belong to the entries that the first begins."""
    for i, line in enumerate(lines):
        deeper = _indent(line) > indent
        if not deeper and not (_indent(line) == indent and _entry(line.strip(), indent)):
            return i
    return len(lines)


def _list(lines: list[str], indent: int) -> str:
    items: list[list[str]] = []
    for line in lines:
        entry = _entry(line.strip(), indent) if _indent(line) == indent else None
        if entry:
            items.append([entry["name"], entry["meaning"]])
        else:
            items[-1][1] += " " + line.strip()
    rows = "".join(
        f"<dt><code>{escape(name)}</code></dt><dd>{inline(meaning)}</dd>" for name, meaning in items
    )
    return f'<dl class="names">{rows}</dl>'


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
