"""`bigr data`: the data sets that package registries hold."""

from __future__ import annotations

from bigr_jax.cli.command import Arguments, Command, no_flags
from bigr_jax.errors import UserError, one_of


def run(arguments: Arguments) -> None:
    """Lists the data sets, or fetches one of them and prints where it lies."""
    from bigr_jax.data import catalogue

    action, *names = arguments.positional or ("list",)
    if action not in ("list", "fetch"):
        raise one_of("action", action, ("list", "fetch"))
    if action == "fetch" and not names:
        raise UserError("bigr data fetch needs a name; `bigr data list` shows them")
    if action == "list" and names:
        raise UserError(f"{names[0]!r} is one word too many; usage: bigr data list")
    print(catalogue.fetch(names[0]) if names else catalogue.table())


COMMAND = Command(
    name="data",
    summary="Lists the data sets that can be fetched and whether they are here, or fetches one.",
    usage="list | fetch NAME",
    examples=(
        "bigr data list",
        "bigr data fetch fashion_mnist",
    ),
    define=no_flags,
    run=run,
    words=2,
)
