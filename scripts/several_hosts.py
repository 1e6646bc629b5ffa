"""Trains as several processes on this machine, disturbs some, and compares with one process.

    python scripts/several_hosts.py [--patience=10] [--json=FILE]

The first table: layouts of processes x simulated devices, on each of which scripts/recorder.py is
trained by `bigr train`. Its state holds a chain of all batches and keys in their order, which must
be the same; losses agree to 1e-5. The second: what became of the processes of a run of which one
was struck or started differently, the seconds until the last one had ended, and what was said. The
exit status is 1 where a run differs, does not end within a minute, or says nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from bigr_jax import files
from bigr_jax.train import writer

ROOT = Path(__file__).resolve().parents[1]
CONFIG, STAGE = str(ROOT / "scripts" / "recorder.py"), "recorder"
LAYOUTS = {"1 x 4": (1, 4), "2 x 2": (2, 2), "4 x 1": (4, 1)}
LONG = ("duration=100000 steps", "save=20 steps", "evaluate=0 steps", "log=1000 steps")
TOLERANCE, SECONDS, LIMIT = 1e-5, 300.0, 60.0


class Strike(NamedTuple):
    """What is done to one of two processes, and what must be said of it.

    signum   sent to process `process` when a checkpoint is there; None: nothing is
    options  that process 1 has and process 0 has not
    """

    name: str
    says: str
    signum: int | None = None
    process: int = 1
    options: tuple[str, ...] = ()


OTHER = (f"--config.train.{STAGE}.batch_size=16",)
STRIKES = (
    Strike("kill -9 of process 1", "process 1 (", signal.SIGKILL, 1),
    Strike("kill -9 of process 0", "process 0 (", signal.SIGKILL, 0),
    Strike("process 1 hangs (SIGSTOP)", "process 1 (", signal.SIGSTOP, 1),
    Strike("SIGTERM to process 1", "stopped at step", signal.SIGTERM, 1),
    Strike("another config", "batch_size", None, 1, OTHER),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both tables and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--patience", type=int, default=10, help="seconds, default 10")
    parser.add_argument("--json", help="file for the rows")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = layouts(Path(folder))
        struck = [disturbed(strike, Path(folder), given.patience) for strike in STRIKES]
    if given.json:
        files.write_json(given.json, {"layouts": rows, "strikes": struck})
    table(rows)
    print()
    table(struck)
    return int(not all(row["as it must be"] == "yes" for row in [*rows, *struck]))


def layouts(folder: Path) -> list[dict[str, str]]:
    """Returns a row for every layout."""
    seen = {}
    for number, (name, (count, devices)) in enumerate(LAYOUTS.items()):
        print(f"{name} ...", file=sys.stderr)
        workdir, begin = folder / f"layout{number}", time.monotonic()
        ended = waited(launched(count, devices, workdir, {}), SECONDS)
        if any(ended.values()):
            raise RuntimeError(f"{name}: exit statuses {ended}")
        losses = [row["loss"] for row in writer.read(workdir, STAGE) if "loss" in row]
        seen[name] = restored(workdir), np.array(losses), time.monotonic() - begin
    (one, wanted, _), *_ = seen.values()
    rows = []
    for name, (leaves, mine, seconds) in seen.items():
        chain = all(np.array_equal(leaves[k], one[k]) for k in one if "chain" in k)
        worst = float(np.abs(mine / wanted - 1).max()) if len(mine) == len(wanted) else np.inf
        same = sum(np.array_equal(leaf, one[path]) for path, leaf in leaves.items())
        rows.append(
            {
                "processes x devices": name,
                "batches in order": "the same" if chain else "OTHERS",
                "largest difference of a loss": f"{worst:.1e}",
                "arrays with the same bits": f"{same} of {len(one)}",
                "seconds": f"{seconds:.1f}",
                "as it must be": "yes" if chain and worst <= TOLERANCE else "NO",
            }
        )
    return rows


def disturbed(strike: Strike, folder: Path, patience: int) -> dict[str, str]:
    """Returns the row of a strike."""
    print(f"{strike.name} ...", file=sys.stderr)
    workdir = folder / str(STRIKES.index(strike))
    options = [f"--config.train.{STAGE}.{setting}" for setting in LONG]
    processes = launched(2, 2, workdir, {0: options, 1: [*options, *strike.options]}, patience)
    begin = time.monotonic()
    if strike.signum is not None:
        saved = workdir / STAGE / "checkpoints"
        there: Callable[[], bool] = lambda: any(p.name.isdigit() for p in saved.glob("*"))  # noqa: E731
        while not there() and time.monotonic() < begin + SECONDS:
            time.sleep(0.02)
        begin = time.monotonic()
        processes[strike.process].send_signal(strike.signum)
    others = {i: p for i, p in processes.items() if strike.signum is None or i != strike.process}
    ended = waited(processes if strike.signum == signal.SIGTERM else others, SECONDS)
    seconds = time.monotonic() - begin
    for process in processes.values():
        process.kill()
        process.wait()
    texts = [(folder / f"{workdir.name}.err{i}").read_text(errors="replace") for i in others]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("bigr: ")]
    said = next((line for line in lines if strike.says in line), "")
    good = said and seconds <= LIMIT and all(ended.values())
    return {
        "what": strike.name,
        "all had ended after": f"{seconds:.1f} s"
        + (" from the start" if not strike.signum else ""),
        "exit statuses": ", ".join(map(str, ended.values())),
        "what was said": said.removeprefix("bigr: ").replace(str(folder), "..."),
        "as it must be": "yes" if good else "NO",
    }


def launched(
    count: int,
    devices: int,
    workdir: Path,
    options: Mapping[int, Sequence[str]],
    patience: int = 20,
) -> dict[int, subprocess.Popen[bytes]]:
    """Starts `bigr train` as `count` processes that meet on a port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "BIGR_PATIENCE": str(patience),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    found = {}
    for index in range(count):
        meet = [address, f"--processes={count}", f"--process={index}"] if count > 1 else []
        words = ["train", f"--config={CONFIG}", f"--workdir={workdir}", *options.get(index, ())]
        with open(workdir.parent / f"{workdir.name}.err{index}", "wb") as log:
            found[index] = subprocess.Popen(
                [sys.executable, "-m", "bigr_jax", *words, *meet],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
    return found


def waited(processes: Mapping[int, subprocess.Popen[bytes]], seconds: float) -> dict[int, int]:
    """Returns the exit statuses; those that have not ended by then are killed."""
    end = time.monotonic() + seconds
    found = {}
    for index, process in processes.items():
        try:
            found[index] = process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            found[index] = process.wait()
    return found


def restored(workdir: Path) -> dict[str, Any]:
    """Returns {path: array} of the newest checkpoint."""
    steps = (workdir / STAGE / "checkpoints").iterdir()
    newest = max((path for path in steps if path.name.isdigit()), key=lambda p: int(p.name))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        how = ocp.args.StandardRestore(fallback_sharding=here)
        state = reader.restore(newest / "state", args=how)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def table(rows: Sequence[Mapping[str, str]]) -> None:
    """Prints rows under their names."""
    for line in [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    sys.exit(main())
