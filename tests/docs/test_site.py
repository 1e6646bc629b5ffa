"""The documentation is built as `make docs` builds it, strictly, and walked: every link leads
somewhere, every method, page and public name is there, one that was just added among them.
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from bigr_jax import registry
from bigr_jax.cli import new

ROOT = Path(__file__).resolve().parents[2]
# Just written by `bigr new`, the first as if it had been proved.
MINE, BARE = "my_method", "bare_method"


class Seen(HTMLParser):
    """What a page of HTML links to, loads, and can be led to; and the links of its navigation."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.nav: list[str] = []
        self.words = ""
        self._navs = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._navs += tag == "nav"
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
            self.nav += [found["href"]] * bool(self._navs)
        elif tag in ("img", "script") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(found["href"])

    def handle_endtag(self, tag: str) -> None:
        self._navs -= tag == "nav"

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two methods more."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("docs", "bigr_jax", "mkdocs.yml", "CHANGELOG.md"):
        (root / name).symlink_to(ROOT / name)
    for name in ("experiments", "configs"):
        shutil.copytree(ROOT / name, root / name)
    (root / "results").mkdir()
    for path in (ROOT / "results").iterdir():
        (root / "results" / path.name).symlink_to(path)
        if path.stem.split("-")[0] == "elr":
            shutil.copy(path, root / "results" / path.name.replace("elr", MINE))
    found = root / "results" / f"{MINE}.json"
    found.write_text(json.dumps({**json.loads(found.read_text("utf-8")), "slug": MINE}))
    for name in (MINE, BARE):
        new.write(new.written(name, root))
    return root


@pytest.fixture(scope="module")
def site(where: Path, monkeypatch_module: pytest.MonkeyPatch) -> dict[str, Seen]:
    """Builds the site, any warning of which is an error, and returns its pages by path."""
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    folder = where / "site"
    config = load_config(str(where / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    pages = folder.rglob("*.html")
    return {p.relative_to(folder).as_posix(): Seen(p.read_text("utf-8")) for p in pages}


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    """Keeps the theme from advertising, and the modules of the site from outliving it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        yield patch


def guide(slug: str) -> str:
    """The page of a method, beside which that of Hydra is about all mixers."""
    return {"hydra": "mixers.html"}.get(slug, f"{slug}.html")


@pytest.mark.parametrize("slug", [*registry.names(), MINE])
def test_every_method_has_a_page_with_all_that_was_found(
    slug: str, site: dict[str, Seen], where: Path
) -> None:
    page = site[guide(slug)]
    card = registry.describe(str(where / "experiments" / f"{slug}.py"))
    words = " ".join(page.words.split())
    for text in (card.claim, card.evidence, card.command):
        assert text in words
    found = json.loads((where / "results" / f"{slug}.json").read_text("utf-8"))
    for claim in found["claims"]:
        assert claim["text"] in words
    pictures = {f"results/{slug}.png", *(f"results/{slug}-{name}.png" for name in found["figures"])}
    assert pictures <= {posixpath.normpath(path) for path in page.loaded}
    variants = registry.run_file(where / "configs" / f"{slug}.py").VARIANTS
    assert all(variant in words for variant in variants)
    # Its source, to the last line.
    assert Path(card.path).read_text("utf-8").split()[-1] in words
    assert guide(slug) in site["methods.html"].links
    held = sum(claim["holds"] for claim in found["claims"])
    assert f"{held} of {len(found['claims'])} claims hold" in words


def test_a_method_that_was_not_proved_says_so(site: dict[str, Seen]) -> None:
    assert "not proved yet" in site[f"{BARE}.html"].words
    assert "not proved yet" in site["methods.html"].words
    assert "not proved yet" not in site["elr.html"].words


def test_every_page_written_by_hand_is_in_the_navigation(site: dict[str, Seen]) -> None:
    written = {p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")}
    led = {link.partition("#")[0] for link in site["index.html"].nav}
    missing = {path.with_suffix(".html").as_posix() for path in written} - led - {"index.html"}
    assert not missing


def test_every_link_leads_somewhere(site: dict[str, Seen], where: Path) -> None:
    dead = []
    for name, page in site.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or name == "404.html":
                continue
            beside = posixpath.join(posixpath.dirname(name), unquote(parts.path))
            path = posixpath.normpath(beside) if parts.path else name
            there = (where / "site" / path).is_file()
            anchor = unquote(parts.fragment)
            if not there or (anchor and path in site and anchor not in site[path].ids):
                dead.append((name, target))
    assert not dead


def test_nothing_is_loaded_from_elsewhere(site: dict[str, Seen]) -> None:
    loaded = {target for page in site.values() for target in page.loaded}
    assert loaded and not [target for target in loaded if urlsplit(target).netloc]


def public(path: Path) -> set[str]:
    """The public functions and classes of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = (n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, kinds))
    return {name for name in names if not name.startswith("_")}


def test_every_public_name_is_in_the_api(site: dict[str, Seen]) -> None:
    missing = []
    for path in (ROOT / "bigr_jax").rglob("*.py"):
        parts = path.relative_to(ROOT / "bigr_jax").with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if any(part.startswith("_") for part in parts):
            continue
        room = parts[0] if path.parent != ROOT / "bigr_jax" else "bigr_jax"
        module, names = ".".join(parts) or "bigr_jax", public(path)
        wanted = {f"{module}.{name}" for name in names} | ({module} if names else set())
        missing += sorted(wanted - site[f"api/{room}.html"].ids)
    assert not missing


def test_docstrings_become_paragraphs_lists_and_formulas(site: dict[str, Any]) -> None:
    html = sys.modules["docstrings"].html
    names = "x  [n, 2], the\n   points\nlonger  more\nReturns."
    doc = f"Does `this` <well>.\n\n    y = a * x_i + b\n\n{names}"
    assert html(doc) == (
        "<p>Does <code>this</code> &lt;well&gt;.</p>\n"
        "<pre><code>y = a * x_i + b</code></pre>\n"
        '<dl class="names"><dt><code>x</code></dt><dd>[n, 2], the points</dd>'
        "<dt><code>longer</code></dt><dd>more</dd></dl>\n<p>Returns.</p>"
    )
    fields = "Has.\n\nAttributes:\n  width: of it, in\n    pixels.\n  depth: number."
    assert "<dt><code>width</code></dt><dd>of it, in pixels.</dd>" in html(fields)


def test_links_to_files_of_the_repository(site: dict[str, Any], where: Path) -> None:
    rewritten = sys.modules["page_links"].rewritten
    for given, wanted in {
        "[x](../bigr_jax/nn/shell.py)": "[x](api/nn.md#nn.shell)",
        "[x](../bigr_jax/data)": "[x](api/data.md)",
        "[x](../bigr_jax/api.py)": "[x](api/bigr_jax.md#api)",
        "[x](../experiments/hydra.py)": "[x](mixers.md#the-recipe)",
        "[x](../results/README.md#elr)": "[x](elr.md#every-claim)",
        "![x](../results/elr.png)": "![x](results/elr.png)",
        "[tests/parity](../tests/parity)": "`tests/parity`",
        "[the tests](../tests/parity)": "the tests",
        "[x](plans.md)": "[x](plans.md)",
        "[x](https://a.b/../c)": "[x](https://a.b/../c)",
        "```\n[x](../bigr_jax/data)\n```": "```\n[x](../bigr_jax/data)\n```",
    }.items():
        assert rewritten(given, "elr.md", where) == wanted
    deeper = rewritten("[x](../../bigr_jax/data)", "tutorials/python.md", where)
    assert deeper == "[x](../api/data.md)"


def test_the_site_is_no_part_of_the_repository() -> None:
    assert "build/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert f"site_dir: build{os.sep}site" in text
