"""A disk that is full while a checkpoint is saved costs that checkpoint and a warning."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigr_jax.errors import UserError
from bigr_jax.train import commands, manifest
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.run import Run
from bigr_jax.train.writer import Metrics


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[Path]:
    """A work directory whose checkpoints of the stage "first" lie on a disk of one MiB."""
    disk = tmp_path / "run" / "first" / "checkpoints"
    disk.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a disk")
    yield tmp_path / "run"
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def filled(workdir: Path) -> None:
    with contextlib.suppress(OSError), open(filler(workdir), "wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass


def filler(workdir: Path) -> Path:
    return workdir / "first" / "checkpoints" / "filler"


@pytest.fixture
def at_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function {step: action} that has an action called after the row of a step, when
    what was to be saved until then has been saved, or has failed.
    """
    write, save = Metrics.write, Checkpoints.save
    used: list[Checkpoints] = []

    def saving(self: Checkpoints, *args: Any) -> bool:
        used[:] = [self]
        return save(self, *args)

    def install(actions: dict[int, Callable[[], Any]]) -> None:
        def patched(self: Metrics, stage: str, step: int, values: Any) -> None:
            write(self, stage, step, values)
            if "loss" in values and step in actions:
                used[0].settle()
                actions[step]()

        monkeypatch.setattr(Metrics, "write", patched)

    monkeypatch.setattr(Checkpoints, "save", saving)
    return install


def test_training_goes_on_and_what_was_saved_stays(
    workdir: Path, tiny: Any, at_rows: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny()
    kept: list[int] = []

    def freed() -> None:
        with Checkpoints(workdir / "first" / "checkpoints") as checkpoints:
            kept.extend(checkpoints.all_steps())
        manifest.verify(workdir / "first" / "checkpoints" / "4", 4)
        filler(workdir).unlink()

    # Saved at 4; full when 8 is saved; free again before 12 is.
    at_rows({6: lambda: filled(workdir), 10: freed})
    commands.train(config, str(workdir), "first")
    assert kept == [4]
    with Run(config, str(workdir)).checkpoints("first") as checkpoints:
        assert checkpoints.all_steps() == [4, 12]
    (warning,) = (
        r for r in caplog.records if r.levelno >= logging.WARNING and r.name[:4] == "bigr"
    )
    assert "first/checkpoints/8 could not be written" in warning.getMessage()
    assert warning.getMessage().endswith("training goes on")
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))


def test_the_last_checkpoint_failing_is_an_error_that_can_be_mended(
    workdir: Path, tiny: Any, at_rows: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    at_rows({10: lambda: filled(workdir)})
    with pytest.raises(UserError, match="first/checkpoints/12 could not be written"):
        commands.train(config, str(workdir), "first")
    run = Run(config, str(workdir))
    assert run.step_of("first") == 8 and not run.is_finished("first")
    monkeypatch.undo()
    filler(workdir).unlink()
    commands.train(config, str(workdir), "first")
    assert Run(config, str(workdir)).is_measured("first")
