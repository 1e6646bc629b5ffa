"""`bigr report`: the tables of what was proved."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from bigr_jax.cli.command import Arguments, Command


def define(values: flags.FlagValues) -> None:
    """Declares --results, --experiments and --html."""
    flags.DEFINE_string(
        "results", "results", "folder that `bigr prove` filled; default results", flag_values=values
    )
    flags.DEFINE_string(
        "experiments",
        "experiments",
        "folder of the experiments, whose README.md gets the table; default experiments",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "html",
        False,
        "also write RESULTS/report.html, one page with all pictures",
        flag_values=values,
    )


def run(arguments: Arguments) -> None:
    """Writes both tables, and the page where it is asked for, and prints where they are."""
    from bigr_jax import files, progress

    given = arguments.flags
    with progress.slow(f"reading {given.results}"):
        texts = written(given.results, given.experiments, given.html)
    for path, text in texts.items():
        files.write_text(path, text)
        print(path)


def written(results: str, experiments: str, html: bool = False) -> dict[str, str]:
    """Returns {path: text} of the tables of a folder of results and a folder of experiments, of a
    README.md beside the latter that has a place for one, and with `html` of the page.

    Raises UserError where one of them is missing.
    """
    from bigr_jax import registry
    from bigr_jax.errors import UserError
    from bigr_jax.lab import page, tables

    for flag, folder, legal in (
        ("results", results, "what `bigr prove` filled"),
        ("experiments", experiments, "the folder of a checkout that holds the experiments"),
    ):
        if not os.path.isdir(folder):
            raise UserError(f"--{flag}={folder} is no folder; legal: {legal}")
    paths = sorted(Path(experiments).glob("[!_]*.py"))
    cards = {path.stem: registry.describe(str(path)) for path in paths}
    found, place = tables.read(results), os.path.join(experiments, "README.md")
    beside = Path(os.path.relpath(results, experiments)).as_posix()
    table = tables.overview(found, cards.values(), beside)
    readme = os.path.normpath(os.path.join(experiments, "..", "README.md"))
    shown = {}
    if tables.has_marks(readme):
        near = Path(os.path.relpath(results, os.path.dirname(readme) or ".")).as_posix()
        short = tables.summary(found, cards.values(), near)
        shown[readme] = tables.inserted(readme, short, near)
    if html:
        shown[os.path.join(results, "report.html")] = page.page(found, cards, results)
    return {
        os.path.join(results, "README.md"): tables.sections(found, cards),
        place: tables.inserted(place, table, beside),
        **shown,
    }


COMMAND = Command(
    name="report",
    summary="Writes what was proved as tables, and as one page with all pictures.",
    usage="[--results=DIR] [--experiments=DIR] [--html]",
    examples=(
        "bigr report",
        "bigr report --results=results --experiments=experiments --html",
    ),
    define=define,
    run=run,
)
