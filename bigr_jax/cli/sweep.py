"""`bigr sweep`: trains every combination of settings and compares them."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.cli.prove import writable

MOST = 100


def define(values: flags.FlagValues) -> None:
    """Declares --stage and --workdir."""
    flags.DEFINE_string(
        "stage",
        None,
        "train this stage only for each combination, those before it once; default all stages",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir", None, "folder of the runs; default runs/NAME-VARIANT-sweep", flag_values=values
    )


def run(arguments: Arguments) -> None:
    """Trains and measures every combination, prints the table, and writes it with its picture."""
    config = arguments.config()
    name = f"{Path(config.slug).stem}-{config.variant}"
    workdir = arguments.flags.workdir or os.path.join("runs", f"{name}-sweep")
    from bigr_jax.lab import sweep

    chosen = sweep.parse(arguments.positional, config)
    writable("workdir", workdir)
    prepare()
    from bigr_jax import files, pictures
    from bigr_jax.lab import Lab, plots
    from bigr_jax.lab.evidence import duration

    found = sweep.run(Lab(config, workdir, workdir), chosen, arguments.flags.stage)
    place = os.path.join(workdir, "sweep")
    files.write_json(f"{place}.json", found)
    title = f"{name.rpartition('-')[0]}:{config.variant}, stage {found['stage']}"
    pictures.save_png(f"{place}.png", plots.overview(title, found["records"]))
    print(sweep.table(found))
    seeds = ", ".join(map(str, chosen.seeds))
    print(f"\n* the best; seeds {seeds}; {duration(found['seconds'])}")
    print(f"{place}.json\n{place}.png")


COMMAND = Command(
    name="sweep",
    summary="Trains every combination of settings and compares them; run again, it goes on.",
    usage='--config=NAME:VARIANT [--stage=STAGE] [--workdir=DIR] "KEY=VALUE,VALUE" ...',
    examples=(
        'bigr sweep --config=bigr:small "model.depth=2,4" "seed=0,1,2"',
        'bigr sweep --config=bigr:small --stage=generator "train.generator.optimizer.lr=1e-3,3e-4"',
    ),
    define=define,
    run=run,
    config=("--config", "--config.KEY"),
    words=MOST,
)
