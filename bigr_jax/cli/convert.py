"""`bigr convert`: published weights into a work directory, and out of it."""

from __future__ import annotations

from absl import flags

from bigr_jax.cli.command import Arguments, Command, prepare
from bigr_jax.cli.eval import required_workdir
from bigr_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Declares --workdir, --export and --dry_run."""
    flags.DEFINE_string("workdir", None, "folder to fill, or to export from", flag_values=values)
    flags.DEFINE_bool(
        "export", False, "write the files from the work directory", flag_values=values
    )
    flags.DEFINE_bool(
        "dry_run", False, "check every name and shape, and write nothing", flag_values=values
    )


def run(arguments: Arguments) -> None:
    """Reads or writes the files STAGE=FILE and says what is where."""
    workdir, given = required_workdir(arguments), arguments.flags
    pairs = stage_files(arguments.positional)
    prepare()
    from bigr_jax.train import conversion

    if given.export:
        if arguments.spec or given.dry_run:
            raise UserError("--export takes neither --config nor --dry_run")
        conversion.give(workdir, pairs)
        print("\n".join(pairs.values()))
        return
    config = arguments.config() if arguments.spec else None
    if given.dry_run:
        conversion.check(config, workdir, pairs)
        print(f"every tensor fits: {', '.join(pairs)}")
        return
    drawn = conversion.take(config, workdir, pairs)
    after = f"bigr {'sample' if drawn else 'eval'} --workdir={workdir}"
    print(f"{workdir} holds {', '.join(pairs)}; next: {after}")


def stage_files(words: tuple[str, ...]) -> dict[str, str]:
    """Returns {stage: file} of words STAGE=FILE. Raises UserError for anything else."""
    pairs = [word.partition("=") for word in words]
    for word, (stage, _, path) in zip(words, pairs, strict=True):
        if not stage or not path:
            raise UserError(f"{word!r} is not STAGE=FILE, e.g. generator=bigr_L.safetensors")
    if not pairs:
        raise UserError("no file is named; e.g. bigr convert generator=bigr_L.safetensors ...")
    if len({stage for stage, _, _ in pairs}) < len(pairs):
        raise UserError("a stage is named twice; one file holds all of it")
    return {stage: path for stage, _, path in pairs}


COMMAND = Command(
    name="convert",
    summary=(
        "Takes published weights (safetensors or npz) into a work directory, which is then\n"
        "drawn from, edited with and trained on like any other; --export writes them back."
    ),
    usage=("STAGE=FILE ... --workdir=DIR [--config=NAME:VARIANT] [--dry_run | --export]"),
    examples=(
        "bigr convert generator=L.npz --config=bigr:paper --workdir=runs/L --dry_run",
        "bigr convert tokenizer=bae.npz generator=L.npz --config=bigr:paper --workdir=runs/L",
        "bigr convert generator=mine.safetensors --workdir=runs/bigr-small --export",
    ),
    define=define,
    run=run,
    config=("--config", "--config.KEY"),
    words=8,
)
