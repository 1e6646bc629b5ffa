"""`bigr completion`: what the shell offers at the Tab key."""

from __future__ import annotations

import ast
import contextlib
import importlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from bigr_jax import registry
from bigr_jax.cli.command import Arguments, Command, declared, take_config
from bigr_jax.errors import UserError, one_of

SCRIPTS = {
    "bash": """\
_bigr() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" completion bash --line="${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
}
complete -o nospace -F _bigr bigr
""",
    "zsh": """\
#compdef bigr
_bigr() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh --line="${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    (( ${#found[1]} )) && compadd -Q -S '' -- "${found[@]}"
}
compdef _bigr bigr
""",
    "fish": "complete -c bigr -f -a '(bigr completion fish --line=(commandline -cp))'\n",
}
# Flags that take a folder, and those that take a file.
FOLDERS = ("workdir", "results", "experiments", "base", "into")
FILES = ("out", "strip", "image", "mask", "images", "json", "inception", "reference")
# At these bash begins another word.
BREAKS = "=:"


def define(values: flags.FlagValues) -> None:
    """Declares --line."""
    flags.DEFINE_string(
        "line",
        None,
        "what is typed so far, as the script asks: prints what may stand for its last word",
        flag_values=values,
    )


def run(arguments: Arguments) -> None:
    """Prints the script of a shell, or what may stand for the last word of a line."""
    if not arguments.positional:
        raise UserError(f"bigr completion needs a shell: {', '.join(SCRIPTS)}")
    shell, line = arguments.positional[0], arguments.flags.line
    if shell not in SCRIPTS:
        raise one_of("shell", shell, SCRIPTS)
    if line is None:
        print(SCRIPTS[shell], end="")
        return
    found: list[str] = []
    # At the prompt nobody is helped by a message.
    with contextlib.suppress(Exception):
        found = candidates(line)
    print("\n".join(_spelled(shell, word, _last(line)) for word in found))


def candidates(line: str) -> list[str]:
    """Returns what may stand for the last word of a command line, which may be empty.

    A word that is to be gone on with, a folder or a flag before its value, has no blank at its end.
    """
    from bigr_jax.cli.main import COMMANDS

    *words, last = _words(line)
    if len(words) < 2:
        found = [f"{name} " for name in (*COMMANDS, "--help", "--version")]
    elif words[1] in COMMANDS:
        found = list(_of_command(words[1], words[2:], last))
    else:
        found = []
    return sorted({word for word in found if word.startswith(last)})


def specs() -> list[str]:
    """Returns NAME:VARIANT of all configs; none of them is run."""
    found = []
    for name in registry.names():
        tree = ast.parse(Path(registry.config_path(name)).read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
                found += [f"{name}:{variant}" for variant in ast.literal_eval(node.value)]
    return found


def _of_command(name: str, words: Sequence[str], last: str) -> Iterator[str]:
    command: Command = importlib.import_module(f"bigr_jax.cli.{name}").COMMAND
    values = declared(command)
    flag, equals, given = last.partition("=")
    spec = take_config(words)[0]
    if equals and flag.lstrip("-") in (*FOLDERS, *FILES):
        yield from (f"{flag}={path}" for path in _paths(given, flag.lstrip("-") in FOLDERS))
    elif equals and flag == "--config":
        yield from (f"{flag}={text} " for text in specs())
        yield from (f"{flag}={path}" for path in _paths(given) if path.endswith(("/", ".py ")))
    elif equals and flag == "--stage" and spec:
        yield from (f"--stage={stage} " for stage in _settings(spec)["train"])
    elif last.startswith("--config.") and "--config.KEY" in command.config:
        yield from _keys(spec, last)
    elif last.startswith("-"):
        for flag in values:
            yield f"--{flag} " if values[flag].boolean else f"--{flag}="
        yield from ["--config="] * ("--config" in command.config)
        yield from ["--config."] * ("--config.KEY" in command.config)
        yield "--help "
    else:
        yield from _free(name, words, spec)


def _free(name: str, words: Sequence[str], spec: str) -> Iterator[str]:
    """Words of a command that are no flags."""
    before = [word for word in words if not word.startswith("-")]
    if name == "sweep" and spec:
        yield from (key.removeprefix("--config.") for key in _keys(spec, ""))
    elif name == "data" and before == ["fetch"]:
        # Not as a part of its package, which imports JAX.
        cards = registry.run_file(Path(registry.__file__).parent / "data" / "cards.py")
        yield from (f"{card} " for card in cards.CARDS)
    elif not before and name == "show":
        yield from (f"{text} " for text in specs())
    elif not before and name in ("data", "completion"):
        yield from ("list ", "fetch ") if name == "data" else (f"{shell} " for shell in SCRIPTS)
    elif not before and name == "edit":
        from bigr_jax.cli.edit import ACTIONS

        yield from (f"{action} " for action in ACTIONS)


def _keys(spec: str, last: str) -> Iterator[str]:
    from bigr_jax import config

    if not spec:
        return
    for key, value in config.flat(config.load(spec)).items():
        if isinstance(value, bool) and last.startswith(f"--config.{key}="):
            yield from (f"--config.{key}={text} " for text in ("true", "false"))
        elif key not in ("slug", "variant"):
            yield f"--config.{key}="


def _settings(spec: str) -> dict[str, dict[str, object]]:
    from bigr_jax import config

    return config.load(spec).to_dict()


def _paths(given: str, folders: bool = False) -> Iterator[str]:
    folder, slash, start = given.rpartition("/")
    for path in Path(f"{folder}{slash}" or ".").expanduser().iterdir():
        if path.name.startswith(start) and (start or path.name[0] != "."):
            if path.is_dir():
                yield f"{folder}{slash}{path.name}/"
            elif not folders:
                yield f"{folder}{slash}{path.name} "


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError:
        # A quotation that is not closed yet.
        words = [word.lstrip("'\"") for word in line.split()]
    return [*words, ""] if not line or line[-1].isspace() else words


def _last(line: str) -> str:
    return "" if not line or line[-1].isspace() else line.split()[-1]


def _spelled(shell: str, word: str, last: str) -> str:
    if shell == "fish":
        return word.rstrip()
    if shell == "bash" and last[:1] not in ("'", '"'):
        return word[max(last.rfind(sign) for sign in BREAKS) + 1 :]
    return word


COMMAND = Command(
    name="completion",
    summary="Prints the script by which a shell completes commands, flags, names and settings.",
    usage="bash | zsh | fish",
    examples=(
        'eval "$(bigr completion bash)"           # a line of ~/.bashrc',
        'eval "$(bigr completion zsh)"            # a line of ~/.zshrc, below compinit',
        "bigr completion fish > ~/.config/fish/completions/bigr.fish",
    ),
    define=define,
    run=run,
    words=1,
)
