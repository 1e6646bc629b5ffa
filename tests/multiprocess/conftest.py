"""Runs of several processes on this machine, which meet on a port of localhost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300.0
PATIENCE = 10


class Ended(NamedTuple):
    """How a process ended: exit status, what it printed, and seconds since all were waited for."""

    status: int
    out: str
    err: str
    seconds: float


class Group:
    """Processes that were started together; those still there are killed when the test ends."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
        self.processes, self._folder = processes, folder

    def wait(self) -> list[Ended]:
        """Returns how all ended; kills them, and says what they said, where they do not."""
        begin = time.monotonic()
        times: dict[int, float] = {}
        while len(times) < len(self.processes):
            passed = time.monotonic() - begin
            for index, process in enumerate(self.processes):
                if index not in times and process.poll() is not None:
                    times[index] = passed
            if passed > SECONDS:
                self.kill()
                said = "\n".join(self.said(index, "err") for index in range(len(self.processes)))
                raise AssertionError(f"only {sorted(times)} ended within {SECONDS} s\n{said}")
            time.sleep(0.02)
        return [
            Ended(process.returncode, self.said(i, "out"), self.said(i, "err"), times[i])
            for i, process in enumerate(self.processes)
        ]

    def good(self) -> list[Ended]:
        """Returns how all ended, which is well."""
        ended = self.wait()
        assert [done.status for done in ended] == [0] * len(ended), [done.err for done in ended]
        return ended

    def until(self, there: Callable[[], bool]) -> None:
        """Returns when something is there, before which no process may end."""
        end = time.monotonic() + SECONDS
        while not there():
            ended = [process.poll() for process in self.processes]
            assert not any(status is not None for status in ended), self.said(0, "err")
            assert time.monotonic() < end, self.said(0, "err")
            time.sleep(0.02)

    def said(self, index: int, stream: str) -> str:
        lines = (self._folder / f"{stream}{index}").read_text(errors="replace").splitlines()
        # The library of the collectives speaks on stdout.
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


Launch = Callable[..., Group]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Yields a function (arguments of Python, count, devices=1, each={process: more arguments},
    env={}) that starts processes which meet, if there are several.
    """
    groups: list[Group] = []

    def start(
        arguments: Sequence[str],
        count: int,
        devices: int = 1,
        each: dict[int, Sequence[str]] | None = None,
        env: dict[str, str] | None = None,
    ) -> Group:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            where = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
        folder = tmp_path_factory.mktemp("processes")
        processes = []
        for index in range(count):
            how = [where, f"--processes={count}", f"--process={index}"] if count > 1 else []
            own = {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
            patience = {"BIGR_PATIENCE": str(PATIENCE)}
            with (
                open(folder / f"out{index}", "wb") as out,
                open(folder / f"err{index}", "wb") as err,
            ):
                process = subprocess.Popen(
                    [sys.executable, *arguments, *how, *(each or {}).get(index, [])],
                    env={**os.environ, **own, **patience, **(env or {})},
                    cwd=ROOT,
                    stdout=out,
                    stderr=err,
                )
            processes.append(process)
        groups.append(Group(processes, folder))
        return groups[-1]

    yield start
    for group in groups:
        group.kill()


@pytest.fixture(scope="session")
def saved() -> Callable[[Path, str], dict[str, Any]]:
    """As the one of all tests, of checkpoints that other processes' devices wrote."""

    def read(workdir: Path, stage: str) -> dict[str, Any]:
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

        steps = (workdir / stage / "checkpoints").iterdir()
        newest = max((path for path in steps if path.name.isdigit()), key=lambda p: int(p.name))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            how = ocp.args.StandardRestore(fallback_sharding=here)
            state = reader.restore(newest / "state", args=how)
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    return read
