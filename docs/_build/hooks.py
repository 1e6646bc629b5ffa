"""What mkdocs calls while it builds the site: the pages that are made of the code and the results.

The repository is the folder of mkdocs.yml. A page for each method, the table of all, and a page of
the API for each room are made anew at every build, so that what is added appears by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import api_pages
import method_pages
import page_links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Sections of the navigation that end with the generated pages.
METHODS, API = "Methods", "API"
CHANGELOG = "changelog.md"


def root(config: MkDocsConfig) -> Path:
    """Returns the folder of the repository."""
    return Path(config.config_file_path).parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the generated pages into the navigation."""
    where = root(config)
    sections: dict[str, list[Any]] = {}
    for entry in config.nav or []:
        sections.update({name: pages for name, pages in entry.items() if isinstance(pages, list)})
    for method in method_pages.methods(where):
        sections[METHODS].append({method.name: method.page})
    for room in api_pages.rooms(where):
        sections[API].append({room.title: room.page})
    config.watch.extend(str(where / name) for name in ("bigr_jax", "experiments", "results"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and the pictures of the results."""
    where = root(config)
    made = {
        **method_pages.pages(where),
        **api_pages.pages(where),
        CHANGELOG: (where / "CHANGELOG.md").read_text("utf-8"),
    }
    for name, text in made.items():
        if name not in files.src_uris:
            files.append(File.generated(config, name, content=text))
    for path in sorted((where / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Completes the pages of methods, and leads links to files of the repository to their pages."""
    where = root(config)
    text = method_pages.completed(markdown, page.file.src_uri, where)
    return page_links.rewritten(text, page.file.src_uri, where)


def on_page_content(html: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Puts drawings into the page itself, where they take the colours of the theme."""

    def drawing(found: re.Match[str]) -> str:
        return (Path(config.docs_dir) / "assets" / found[1]).read_text("utf-8")

    return re.sub(r'<p><img [^>]*src="[./]*assets/([\w-]+\.svg)"[^>]*></p>', drawing, html)
