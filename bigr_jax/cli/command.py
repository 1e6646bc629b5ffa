"""What a command is, how its arguments are read, and its help."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from bigr_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG_HELP = (
    "the experiment and its variant, or a config file of your own: bigr:small, ./my_idea.py:small"
)
OVERRIDE_HELP = "replaces one setting, as often as you like; `bigr show` lists them"


class Arguments(NamedTuple):
    """What was typed after a command's name.

    flags       values of the command's own flags, by attribute
    positional  words that are no flags
    spec        text of --config, "" where none was given
    overrides   {"model.depth": "4"} of --config.model.depth=4
    """

    flags: flags.FlagValues
    positional: tuple[str, ...]
    spec: str
    overrides: dict[str, str]

    def config(self) -> ConfigDict:
        """Returns the locked config that --config and its overrides name.

        Raises UserError where none is named, and as `config.load` does.
        """
        from bigr_jax import config

        if not self.spec:
            raise UserError("--config is missing, e.g. --config=bigr:small; `bigr list` shows all")
        return config.load(self.spec, self.overrides)


class Command(NamedTuple):
    """A command of `bigr`.

    usage     what may follow the name
    define    (flag values) -> None: declares the command's own flags
    run       (arguments) -> None; raises UserError for a mistake
    config    which of "--config" and "--config.KEY" it takes
    words     how many words it takes that are no flags
    """

    name: str
    summary: str
    usage: str
    example: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[Arguments], None]
    config: tuple[str, ...] = ()
    words: int = 0


def no_flags(values: flags.FlagValues) -> None:
    """Declares no flags."""


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Reads the words after a command's name.

    Raises UserError for a word that the command does not know.
    """
    values = flags.FlagValues()
    command.define(values)
    spec, overrides, rest = _take_config(argv)
    for given, name in ((spec, "--config"), (overrides, "--config.KEY")):
        if given and name not in command.config:
            raise UserError(f"bigr {command.name} takes no {name}")
    try:
        positional = tuple(values([command.name, *rest])[1:])
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in values] + ["--config"] * bool(command.config)
        hint = nearest(f"--{error.flagname}", known) or f"; see bigr {command.name} --help"
        raise UserError(f"--{error.flagname} is no flag of bigr {command.name}{hint}") from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    if len(positional) > command.words:
        extra = positional[command.words]
        usage = f"bigr {command.name} {command.usage}".rstrip()
        raise UserError(f"{extra!r} is one word too many; usage: {usage}")
    return Arguments(values, positional, spec, overrides)


def help_text(command: Command) -> str:
    """Returns what `bigr COMMAND --help` prints."""
    values = flags.FlagValues()
    command.define(values)
    rows = [("--config=NAME:VARIANT", CONFIG_HELP)] if "--config" in command.config else []
    if "--config.KEY" in command.config:
        rows.append(("--config.KEY=VALUE", OVERRIDE_HELP))
    rows += [(f"--{name}", values[name].help or "") for name in sorted(values)]
    lines = [f"usage: bigr {command.name} {command.usage}".rstrip(), "", command.summary, ""]
    lines += [_row(name, text) for name, text in rows]
    lines += [""] * bool(rows) + [f"example: {command.example}"]
    return "\n".join(lines)


def cache_compilations() -> None:
    """Keeps compiled programs on disk between runs; JAX's environment variables take precedence."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", cache_directory())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_directory() -> str:
    """Returns the folder of compiled programs."""
    default = os.path.join(os.path.expanduser("~"), ".cache", "bigr_jax", "jax")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def _row(name: str, text: str) -> str:
    return textwrap.fill(
        text, width=100, initial_indent=f"  {name:<24}", subsequent_indent=" " * 26
    )


def _take_config(argv: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    """Splits off --config and --config.KEY; both `=` and a blank may stand before the value.

    A key without a value is a bool: --config.KEY is true, --noconfig.KEY is false.
    """
    spec, rest = "", []
    overrides: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?(no)?config(?:\.([^=]+))?(?:=(.*))?", word, re.DOTALL)
        if match is None or (match[1] and not match[2]):
            rest.append(word)
            continue
        negated, key, value = match.groups()
        if negated:
            value = "false"
        elif value is None:
            follows = words and not words[0].startswith("--")
            value = words.pop(0) if follows else "true" if key else ""
        if key:
            # The last one counts, and keeps its place among the others.
            overrides.pop(key, None)
            overrides[key] = value
        else:
            spec = value
    return spec, overrides, rest
