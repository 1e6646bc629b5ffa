"""`bigr list`: the experiments in a table."""

from __future__ import annotations

import shutil
import sys

from bigr_jax import registry
from bigr_jax.cli.command import Arguments, Command, no_flags

HEAD = ("name", "title", "claim", "command")


def run(arguments: Arguments) -> None:
    """Prints a row per experiment; on a terminal titles and claims are cut to its width."""
    cards = [registry.describe(name) for name in registry.names()]
    rows = [HEAD, *((card.slug, card.title, card.claim, card.command) for card in cards)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(table(rows, width))


def table(rows: list[tuple[str, str, str, str]], width: int | None) -> str:
    """Returns aligned rows; within `width` the middle columns share what the others leave."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        left = max(width - widths[0] - widths[3] - 6, 40)
        widths[1] = min(widths[1], left // 2)
        widths[2] = min(widths[2], left - widths[1])
    lines = ("  ".join(map(_cut, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


COMMAND = Command(
    name="list",
    summary="Lists the experiments: name, title, claim, and the command that shows it.",
    usage="",
    examples=("bigr list",),
    define=no_flags,
    run=run,
)
