"""Links to files of the repository, as they stand in a page, made links within the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import api_pages
import method_pages

# A link or an image; those of another site, and to a place of the same page, are left alone.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s]+)\)")
_FENCE = re.compile(r"(^[ ]*(?:```|~~~).*?^[ ]*(?:```|~~~)[ ]*$)", re.MULTILINE | re.DOTALL)
_OTHERS = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def rewritten(text: str, page: str, where: Path) -> str:
    """Returns a page's Markdown with every link to a file outside of docs/ led to the page that
    shows it; what no page shows keeps its name, without a link.

    page   path of the page below docs/
    where  folder of the repository
    """
    parts = _FENCE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = _LINK.sub(lambda found: _replaced(found, page, where), parts[i])
    return "".join(parts)


def _replaced(found: re.Match[str], page: str, where: Path) -> str:
    mark, text, target = found.groups()
    path, hash_, anchor = target.partition("#")
    full = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), path))
    if full.startswith("docs/"):
        return found[0]
    shown = _shown(full, anchor, where)
    if shown is None:
        # A name of a file is code; other words stay as they are.
        return f"`{text}`" if re.fullmatch(r"[\w./]+", text) else text
    return f"{mark}[{text}]({posixpath.relpath(shown, posixpath.dirname(page) or '.')})"


def _shown(path: str, anchor: str, where: Path) -> str | None:
    """Returns the page, with its anchor, that shows a file of the repository, None where none."""
    if path in _OTHERS:
        return _OTHERS[path]
    folder, _, name = path.partition("/")
    pages = {method.slug: method.page for method in method_pages.methods(where)}
    if folder == "results":
        if name.endswith(".png"):
            return path
        return f"{pages[anchor]}#every-claim" if anchor in pages else method_pages.OVERVIEW
    if folder in ("experiments", "configs"):
        slug = name.removesuffix(".py")
        heading = "the-recipe" if folder == "experiments" else "its-settings"
        return f"{pages[slug]}#{heading}" if slug in pages else None
    return api_pages.place(path, where) if folder == "bigr_jax" else None
