"""`bigr new`: writes an experiment, its config and its test, to be replaced piece by piece."""

from __future__ import annotations

import datetime
import keyword
import os
import re
import shlex
from importlib import resources
from pathlib import Path
from string import Template

from absl import flags

from bigr_jax import files, registry
from bigr_jax.cli.command import Arguments, Command
from bigr_jax.errors import UserError

SNAKE_CASE = r"[a-z][a-z0-9]*(_[a-z0-9]+)*"
HOUSE = "from bigr_jax.train.defaults import base, section, stage\n"
SECTIONS = "from ml_collections import ConfigDict\n"
# Where a slug is not looked for, a config says where its recipe lies.
RECIPE = '# The recipe beside this folder.\nRECIPE = Path(__file__).resolve().parents[1] / "{}"\n'


def define(values: flags.FlagValues) -> None:
    """Declares --into."""
    flags.DEFINE_string("into", ".", "folder to write to; default this one", flag_values=values)


def run(arguments: Arguments) -> None:
    """Writes the files of a new experiment, and prints them and what to try next."""
    if not arguments.positional:
        raise UserError("the name is missing, e.g. bigr new my_method")
    (name,), into = arguments.positional, Path(arguments.flags.into)
    check_name(name)
    if not into.is_dir():
        raise UserError(f"--into={into} is not a folder")
    texts = written(name, into)
    write(texts)
    ref = name if in_zoo(into) else shlex.quote(str(into / "configs" / f"{name}.py"))
    test = shlex.quote(str(into / "tests" / "experiments" / f"test_{name}.py"))
    print(*(f"wrote {path}" for path in texts), "", sep="\n")
    print(f"bigr train --config={ref}:smoke\nbigr prove --config={ref}:small\npytest {test}")


def check_name(name: str) -> None:
    """Raises UserError for a name that is not in snake case, or taken by an experiment."""
    if not re.fullmatch(SNAKE_CASE, name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name; legal: a Python name in snake case, as my_method")
    if name in registry.names():
        raise UserError(f"{name!r} is an experiment already: {registry.describe(name).path}")


def in_zoo(into: Path) -> bool:
    """Whether a slug is looked for in a folder's experiments, as in those of a checkout."""
    places = {Path(registry.describe(name).path).resolve().parent for name in registry.names()}
    return (into / "experiments").resolve() in places


def written(name: str, into: Path) -> dict[Path, str]:
    """Returns {path: text} of a new experiment; where the contract of all experiments is tested,
    with its shapes on record.
    """
    recipe, config = f"experiments/{name}.py", f"configs/{name}.py"
    here = in_zoo(into)
    words = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "year": str(datetime.date.today().year),
        "config": name if here else config,
        # Imports of bigr_jax stand apart in a checkout, and elsewhere with those of other packages.
        "gap": "\n" if here else "",
        "imports": f"{SECTIONS}\n{HOUSE}"
        if here
        else f"from pathlib import Path\n\n{HOUSE}{SECTIONS}",
        "recipe": "" if here else RECIPE.format(recipe),
        "slug": f'"{name}"' if here else "str(RECIPE)",
    }
    places = {recipe: "experiment", config: "config", f"tests/experiments/test_{name}.py": "test"}
    if (into / "tests" / "contract").is_dir():
        places[f"tests/contract/{name}.txt"] = "shapes"
    templates = resources.files("bigr_jax.cli") / "templates"
    return {
        into / path: Template((templates / f"{kind}.txt").read_text("utf-8")).substitute(words)
        for path, kind in places.items()
    }


def write(texts: dict[Path, str]) -> None:
    """Writes all files, or none. Raises UserError where one is there already, or cannot be made."""
    there = [str(path) for path in texts if os.path.lexists(path)]
    if there:
        raise UserError(f"{', '.join(there)} would be overwritten; give another name, or --into")
    done: list[Path] = []
    try:
        for path, text in texts.items():
            files.write_text(path, text)
            done.append(path)
    except OSError as error:
        for path in done:
            path.unlink()
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from None


COMMAND = Command(
    name="new",
    summary="Writes a small working experiment with its config and its test, to start from.",
    usage="NAME [--into=DIR]",
    examples=(
        "bigr new my_method",
        "bigr new my_method --into=papers",
    ),
    define=define,
    run=run,
    words=1,
)
