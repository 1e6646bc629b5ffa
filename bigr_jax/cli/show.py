"""`bigr show`: the settings of an experiment."""

from __future__ import annotations

from bigr_jax.cli.command import Arguments, Command, no_flags
from bigr_jax.errors import UserError


def run(arguments: Arguments) -> None:
    """Prints every setting with its value, and the default beside those that were overridden."""
    from bigr_jax import config as configs

    if arguments.spec and arguments.positional:
        raise UserError(f"two configs: {arguments.positional[0]} and --config={arguments.spec}")
    arguments = arguments._replace(spec=arguments.spec or "".join(arguments.positional))
    config = arguments.config()
    changes = configs.diff(configs.load(arguments.spec), config)
    before = {change.key: change.before for change in changes}
    settings = configs.flat(config)
    width = max(map(len, settings))
    for key, value in settings.items():
        note = f"  (default {before[key]!r})" if key in before else ""
        print(f"{key:<{width}}  {value!r}{note}")


COMMAND = Command(
    name="show",
    summary="Prints the settings of an experiment, as they are after overrides.",
    usage="NAME:VARIANT [--config.KEY=VALUE ...]",
    examples=(
        "bigr show bigr:small",
        "bigr show bigr:small --config.model.depth=4",
    ),
    define=no_flags,
    run=run,
    config=("--config", "--config.KEY"),
    words=1,
)
