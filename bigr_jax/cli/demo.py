"""`bigr demo`: a page of the browser in which a trained BiGR draws and edits."""

from __future__ import annotations

import importlib.util

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.cli.eval import required_workdir
from bigr_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Declares --workdir, --port and --open."""
    flags.DEFINE_string("workdir", None, "folder that `bigr train` filled", flag_values=values)
    flags.DEFINE_integer(
        "port", 7860, "of this machine; default 7860",
        lower_bound=1, upper_bound=65535, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("open", False, "opens the page in the browser", flag_values=values)


def run(arguments: Arguments) -> None:
    """Prints the address of the page and serves it until it is interrupted."""
    workdir, given = required_workdir(arguments), arguments.flags
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'bigr_jax[demo]'")
    prepare()
    from bigr_jax.model import load

    model = load(workdir)
    from bigr_jax.demo.server import serve

    serve(model, workdir, given.port, given.open)


COMMAND = Command(
    name="demo",
    summary=(
        "Opens a page in which a trained BiGR draws classes, edits pictures that you paint over,\n"
        "and blends classes. It is served to this machine alone, and nothing leaves it."
    ),
    usage="--workdir=DIR [--port=7860] [--open]",
    examples=(
        "bigr demo --workdir=runs/quickstart --open",
        "bigr demo --workdir=runs/quickstart --port=8080",
    ),
    define=define,
    run=run,
)
