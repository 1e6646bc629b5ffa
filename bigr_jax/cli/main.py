"""The entry of the command line: finds the command, runs it, and turns mistakes into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import bigr_jax
from bigr_jax import interrupts
from bigr_jax.cli import command
from bigr_jax.errors import UserError, nearest

# Each is a module of this package with a COMMAND, imported only when it is asked for.
COMMANDS = {
    "list": "the experiments, what each claims, and its small command",
    "show": "the settings of an experiment, with their values",
    "plan": "what training takes of a machine that need not be there",
    "train": "train an experiment, or go on with it",
    "eval": "measure a trained experiment again, or by FID and its kin",
    "sample": "draw a picture grid from a trained experiment",
    "edit": "inpaint, outpaint, change, blend or refine a picture",
    "demo": "draw and edit in a page of the browser",
    "encode": "store the codes of a set of images, to train on",
    "convert": "published weights into a work directory, and back",
    "prove": "run an experiment's study: arms, seeds, claims, and a picture",
    "sweep": "train every combination of settings, and compare them",
    "report": "write the tables of what was proved",
    "new": "write a new experiment, its config and its test, to start from",
    "data": "the data sets that can be fetched, and fetching one",
    "doctor": "versions, devices, data sets, and what is wrong with them",
    "completion": "the script by which bash, zsh or fish complete all this",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `bigr` on `argv`, the words after the program's name, and returns its exit status.

    0 done; 2 a mistake of the user's, told in one line on stderr; 128 + the signal's number when
    interrupted. BIGR_DEBUG=1 adds the traceback.
    """
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except (UserError, KeyboardInterrupt, OSError) as error:
        if isinstance(error, OSError) and error.errno not in command.PLACES:
            raise
        return command.say(error)
    except Exception:
        if not interrupts.raised():
            raise
        return command.say(KeyboardInterrupt())
    return 0


def usage() -> str:
    """Returns what `bigr --help` prints."""
    rows = "\n".join(f"  {name:<12}{summary}" for name, summary in COMMANDS.items())
    return (
        "usage: bigr COMMAND ...\n\n"
        f"{bigr_jax.__doc__}\n\n"
        f"{rows}\n\n"
        "`bigr COMMAND --help` says more; `bigr --version` prints the version.\n\n"
        "example: bigr train --config=bigr:small"
    )


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    name, *words = argv
    if name == "--version":
        print(f"bigr {bigr_jax.__version__}")
        return
    if name not in COMMANDS:
        raise UserError(f"{name!r} is no command{nearest(name, COMMANDS)}; see bigr --help")
    chosen: command.Command = importlib.import_module(f"bigr_jax.cli.{name}").COMMAND
    if "-h" in words or "--help" in words:
        print(command.help_text(chosen))
        return
    command.execute(chosen, words)
