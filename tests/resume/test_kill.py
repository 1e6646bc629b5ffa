"""A run that is killed and stopped ends as one that nothing disturbed, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigr_jax import files

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("tokenizer", "referee", "generator")
SECONDS = 300


def saving(stage: str, step: int) -> Callable[[Path], bool]:
    """Returns whether a checkpoint is being written, or is there."""
    return lambda workdir: any((workdir / stage / "checkpoints").glob(f"{step}*"))


def logged(stage: str, step: int) -> Callable[[Path], bool]:
    """Returns whether metrics.jsonl has a row of a step."""

    def seen(workdir: Path) -> bool:
        path = workdir / "metrics.jsonl"
        return path.exists() and f'"stage": "{stage}", "step": {step},' in path.read_text()

    return seen


# In the middle of a save, between two saves, and in the middle of the last save; the exit statuses
# are those of a process that died of the signal, and of one that was asked to stop and did.
BREAKS = (
    (saving("tokenizer", 10), signal.SIGKILL, -9),
    (logged("generator", 5), signal.SIGTERM, 143),
    (saving("generator", 20), signal.SIGKILL, -9),
)


def start(workdir: Path, log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bigr_jax", "train", "--config=bigr:smoke"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], env=environment, stdout=log, stderr=log
    )


def broken(workdir: Path, log: Any, instant: Callable[[Path], bool], signum: int) -> int:
    """Starts a run, sends it a signal once the instant has come, and returns its status."""
    process = start(workdir, log)
    until = time.monotonic() + SECONDS
    try:
        while not instant(workdir) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signum)
        return process.wait(SECONDS)
    finally:
        process.kill()


def results(workdir: Path) -> dict[str, Any]:
    """Returns the results by stage, without the time that they took."""
    stages = (files.read_json(workdir / "results.json") or {"stages": {}})["stages"]
    for entry in stages.values():
        del entry["seconds"]
    return stages


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    workdir = folder / "run"
    with open(folder / "log", "wb") as log:
        for instant, signum, status in BREAKS:
            assert broken(workdir, log, instant, signum) == status, (folder / "log").read_text()
            assert "generator" not in results(workdir)
        assert start(workdir, log).wait(SECONDS) == 0, (folder / "log").read_text()
    assert (folder / "log").read_text().count("of stage 'generator', saved; the same command") == 1
    return workdir


@pytest.mark.parametrize("stage", STAGES)
def test_every_leaf_is_the_same(smoke: Path, resumed: Path, saved: Any, stage: str) -> None:
    expected, found = saved(smoke, stage), saved(resumed, stage)
    assert expected.keys() == found.keys()
    assert {path.split("'")[1] for path in expected} >= {"step", "variables", "opt_state"}
    assert any(path.startswith("['ema']") for path in expected) == (stage != "referee")
    for path, leaf in expected.items():
        assert (leaf.shape, leaf.dtype) == (found[path].shape, found[path].dtype), path
        assert leaf.tobytes() == found[path].tobytes(), path


def test_every_row_is_there_once(smoke: Path, resumed: Path) -> None:
    rows = (resumed / "metrics.jsonl").read_text().splitlines()
    assert rows == (smoke / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(row) for row in rows]
    last = {row["stage"]: row["step"] for row in found}
    assert last == dict.fromkeys(STAGES, 20)
    losses = [(row["stage"], row["step"]) for row in found if "loss" in row]
    assert losses == [(stage, step) for stage in STAGES for step in (5, 10, 15, 20)]


def test_what_is_shown_is_the_same(smoke: Path, resumed: Path) -> None:
    for name in ("samples.png", "reconstructions.png", "config.json", "params.txt"):
        assert (resumed / name).read_bytes() == (smoke / name).read_bytes(), name
    assert results(smoke) == results(resumed)
    assert results(smoke).keys() == set(STAGES)
