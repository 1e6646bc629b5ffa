"""What a command is, how its arguments are read, and its help."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import platform
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from bigr_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG_HELP = (
    "the experiment and its variant, or a config file of your own: bigr:small, ./my_idea.py:small"
)
HOSTS_HELP = (
    "for several hosts, which all run the same command: the cluster tells where they meet (TPU "
    "hosts, Slurm, Open MPI, Kubernetes)"
)
COORDINATOR_HELP = "for several hosts by hand: HOST:PORT of process 0, a port that is free there"
OVERRIDE_HELP = "replaces one setting, as often as you like; `bigr show` lists them"
# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# What ends a command by no mistake of the program's, and the mend.
_ROOM = "make room there or give another place; the same command then goes on where it can"
_OTHER = "give a place that can be read and written to"
PLACES = {
    errno.EPIPE: "",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _OTHER,
    errno.EACCES: _OTHER,
    errno.EPERM: _OTHER,
}


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
    examples  whole lines, the simplest first
    define    (flag values) -> None: declares the command's own flags
    run       (arguments) -> None; raises UserError for a mistake
    config    which of "--config" and "--config.KEY" it takes
    words     how many words it takes that are no flags
    hosts     whether several hosts can run it together, and so the flags that say how they meet
    """

    name: str
    summary: str
    usage: str
    examples: tuple[str, ...]
    define: Callable[[flags.FlagValues], None]
    run: Callable[[Arguments], None]
    config: tuple[str, ...] = ()
    words: int = 0
    hosts: bool = False


def no_flags(values: flags.FlagValues) -> None:
    """Declares no flags."""


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Reads the words after a command's name.

    Raises UserError for a word that the command does not know.
    """
    values = declared(command)
    spec, overrides, rest = take_config(argv)
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
        raise _flag_error(command, values, str(error)) from None
    if len(positional) > command.words:
        extra = positional[command.words]
        usage = f"bigr {command.name} {command.usage}".rstrip()
        meant = "--config" in command.config and not spec
        hint = f" (did you mean '--config={extra}'?)" if meant else ""
        raise UserError(f"{extra!r} is one word too many{hint}; usage: {usage}")
    return Arguments(values, positional, spec, overrides)


def execute(command: Command, argv: Sequence[str]) -> None:
    """Runs a command on the words after its name, as one of several processes if they say so."""
    arguments = parse(command, argv)
    with _joined(arguments) if command.hosts else contextlib.nullcontext():
        command.run(arguments)
        sys.stdout.flush()


def say(error: BaseException) -> int:
    """Prints what ended a command and returns the exit status.

    2 a mistake of the user's; 128 + the signal's number when interrupted; 1 anything else, with the
    traceback, which BIGR_DEBUG=1 adds to the others.
    """
    if isinstance(error, BrokenPipeError):
        # The reader, such as `head`, has seen enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    text, status = str(error), 2
    if isinstance(error, OSError) and error.errno in PLACES:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror}; {PLACES[error.errno]}"
        error = UserError(text).with_traceback(error.__traceback__)
    if isinstance(error, KeyboardInterrupt):
        text = text or "interrupted"
        status = 128 + getattr(error, "signum", signal.SIGINT)
    elif not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    if os.environ.get("BIGR_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"bigr: {text}", file=sys.stderr)
    return status


def help_text(command: Command) -> str:
    """Returns what `bigr COMMAND --help` prints."""
    values = declared(command)
    rows = [("--config=NAME:VARIANT", CONFIG_HELP)] if "--config" in command.config else []
    if "--config.KEY" in command.config:
        rows.append(("--config.KEY=VALUE", OVERRIDE_HELP))
    rows += [(f"--{name}", values[name].help or "") for name in sorted(values)]
    lines = [f"usage: bigr {command.name} {command.usage}".rstrip(), "", command.summary, ""]
    lines += [_row(name, text) for name, text in rows]
    lines += [""] * bool(rows) + ["examples:", *(f"  {line}" for line in command.examples)]
    return "\n".join(lines)


def prepare() -> None:
    """Readies the process for computing: compiled programs stay on disk between runs, where JAX's
    environment variables take precedence, and on a CPU freed memory stays in the process.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", cache_directory())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Has glibc serve large arrays from its heap, and keep up to a GiB of it that is free.

    Else every step asks the kernel anew for the pages of its arrays, which clears them first: up to
    a third of the time of a small network.
    """
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_M_MMAP_MAX, 0)
    allocator.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def cache_directory() -> str:
    """Returns the folder of compiled programs."""
    default = os.path.join(os.path.expanduser("~"), ".cache", "bigr_jax", "jax")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def _flag_error(command: Command, values: flags.FlagValues, text: str) -> UserError:
    """What absl says of a flag's value, in words that need no knowledge of Python."""
    if match := re.match(r"Missing value for flag (--\S+)", text):
        name = match[1]
        return UserError(f"{name} lacks its value: {name}=...; see bigr {command.name} --help")
    match = re.match(r"flag (--(\w+))=(.*?): (.*)", text, re.DOTALL)
    if match is None:
        return UserError(text)
    flag, name, given, why = match.groups()
    legal = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kind = legal.get(values[name].flag_type() if name in values else "", "")
    if kind and not re.fullmatch(r"-?[\d.]+", given):
        why = f"legal: {kind}"
    # Of a bound absl says "0 is not a positive integer".
    why = re.sub(r"^\S+ is not (?:an? )?", "legal: ", why)
    return UserError(f"{flag}={given}: {why}")


def declared(command: Command) -> flags.FlagValues:
    """Returns the flags of a command, unset."""
    values = flags.FlagValues()
    command.define(values)
    if command.hosts:
        flags.DEFINE_bool("distributed", False, HOSTS_HELP, flag_values=values)
        flags.DEFINE_string("coordinator", None, COORDINATOR_HELP, flag_values=values)
        flags.DEFINE_integer(
            "processes", None, "with --coordinator: how many there are", 1, flag_values=values
        )
        flags.DEFINE_integer(
            "process", None, "with --coordinator: which one this is, from 0", 0, flag_values=values
        )
    return values


@contextlib.contextmanager
def _joined(arguments: Arguments) -> Iterator[None]:
    given = arguments.flags
    if not _told_of_hosts(given):
        yield
        return
    from bigr_jax.train import hosts

    address = None
    if given.coordinator:
        address = hosts.Address(given.coordinator, given.processes, given.process)
    told = {f"--{name}": given[name].value for name in given if name != "process"}
    with contextlib.ExitStack() as stack:
        if stack.enter_context(hosts.joined(address, say)):
            # What a command prints is the same everywhere; that of process 0 is enough.
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        hosts.agree(lambda: {"command": {**told, "words": arguments.positional}})
        yield


def _told_of_hosts(given: flags.FlagValues) -> bool:
    by_hand = ("coordinator", "processes", "process")
    told = [name for name in by_hand if given[name].present]
    if given.distributed and told:
        raise UserError(f"--distributed and --{told[0]}: one at a time")
    if told and len(told) < len(by_hand):
        missing = next(name for name in by_hand if name not in told)
        raise UserError(f"--{told[0]} goes with --{missing}, which is missing")
    if not told:
        return bool(given.distributed)
    host, _, port = given.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator={given.coordinator}: legal: HOST:PORT, 10.0.0.1:1234")
    if given.process >= given.processes:
        raise UserError(
            f"--process={given.process}: with --processes={given.processes}, legal: 0 to "
            f"{given.processes - 1}"
        )
    return True


def _row(name: str, text: str) -> str:
    return textwrap.fill(
        text, width=100, initial_indent=f"  {name:<24}", subsequent_indent=" " * 26
    )


def take_config(argv: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
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
