"""Kills a run at random instants until it has ended, and compares it with one that nothing touched.

    python scripts/chaos.py [--kills=100] [--terms=30] [--seed=0] [--pace=0.06] [--json=FILE]

SIGKILL and SIGTERM strike in every phase of a run: while Python starts, while a checkpoint is read,
while the step is compiled, in a step, in an evaluation, while a checkpoint is copied, written,
hashed and renamed, and while what was trained is measured. A run that is struck is started again,
struck again, and after a few strikes left to end. Its last state (a chain of all batches and keys,
parameters, optimizer, average) and its metrics must be those of the undisturbed run, bit by bit.

After SIGKILL a run may lose `save` steps, after SIGTERM one. A row of the table tells how many
strikes there were, how many of them in runs that ended exactly, and the median and the most of the
steps lost. The exit status is 1 where a run ends otherwise or more is lost.

All runs are forked from one process that has imported everything and started nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import mmap
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
CONFIG, STAGE, SAVE_EVERY = str(ROOT / "scripts" / "recorder.py"), "recorder", 4
# Of the thread that trains, and of the one that writes.
FRONT = ("start", "restore", "compile", "step", "evaluate", "copy", "measure")
BACK = ("idle", "write", "hash", "rename")
PHASES = (*FRONT, *BACK[1:])
TIMEOUT = 120.0
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


class Board:
    """What a run tells of itself, in memory that outlives it.

    front, back         its phases
    done                the last step whose metrics have been read
    restored            the step that it went on from, -1 before it did
    """

    NAMES = ("front", "back", "done", "restored")

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * len(self.NAMES))).cast("q")

    def __getattr__(self, name: str) -> int:
        return self._cells[self.NAMES.index(name)]

    def tell(self, **values: int) -> None:
        """Sets some of the cells."""
        for name, value in values.items():
            self._cells[self.NAMES.index(name)] = value

    def phase(self, name: str) -> bool:
        """Whether the run is in a phase."""
        if name in FRONT:
            return self.front == FRONT.index(name)
        return self.back == BACK.index(name)


@dataclasses.dataclass
class Strike:
    """A signal that hit a run: in which phase, and how many steps that cost."""

    signal: str
    phase: str
    lost: int = 0
    exact: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, default 100")
    parser.add_argument("--terms", type=int, default=30, help="SIGTERMs, default 30")
    parser.add_argument("--seed", type=int, default=0, help="of the instants, default 0")
    parser.add_argument("--pace", type=float, default=0.06, help="seconds a step, at least")
    parser.add_argument("--json", help="file for the strikes")
    given = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message=".*fork")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # All that a run needs, so that a fork begins where it would after some seconds.
        from bigr_jax import files
        from bigr_jax.cli import train  # noqa: F401
        from bigr_jax.train import commands  # noqa: F401

        strikes, wrong = struck(Path(folder), given)
        if given.json:
            files.write_json(given.json, [dataclasses.asdict(strike) for strike in strikes])
    for line in table(strikes):
        print("| " + " | ".join(line) + " |")
    wrong += [f"{s.signal} in {s.phase}: {s.lost} steps lost" for s in strikes if not allowed(s)]
    print(f"\nwrong: {'; '.join(wrong)}" if wrong else "\nevery run ended as the undisturbed one")
    return int(bool(wrong))


def allowed(strike: Strike) -> bool:
    """Whether a strike cost no more than it may."""
    return strike.lost <= (SAVE_EVERY if strike.signal == "SIGKILL" else 1)


def struck(folder: Path, given: argparse.Namespace) -> tuple[list[Strike], list[str]]:
    """Returns the strikes on all runs, and what was wrong with runs that did not end exactly."""
    rng = random.Random(given.seed)
    wanted = [
        name for name, n in zip(SIGNALS, (given.kills, given.terms), strict=True) for _ in range(n)
    ]
    # So that a few strikes are of many kinds as well.
    phases = [PHASES[3 * index % len(PHASES)] for index in range(len(wanted))]
    plan = [Strike(name, phase) for name, phase in zip(wanted, phases, strict=True)]
    rng.shuffle(plan)
    run = Run(folder / "whole", given.pace)
    begin = time.monotonic()
    assert run.leg(None, rng) == 0, run.log()
    length, expected = time.monotonic() - begin, run.digest()
    strikes: list[Strike] = []
    wrong: list[str] = []
    number = 0
    while plan:
        number += 1
        run = Run(folder / f"run{number}", given.pace)
        chain = [plan.pop() for _ in range(min(len(plan), rng.randint(3, 6)))]
        if chain[0].phase == "restore":
            # There is nothing to read yet.
            chain[0].phase = "step"
        status = -1
        for strike in [*chain, None]:
            status = run.leg(strike, rng, length)
            if status == 0:
                break
        # Those for which the run did not last are struck in the next.
        plan[:0] = [s for s in chain if not any(s is other for other in run.strikes)]
        same = status == 0 and run.digest() == expected
        if not same:
            wrong.append(
                f"run {number} after {[(s.signal, s.phase) for s in run.strikes]}: {status}"
            )
            print(run.log(), file=sys.stderr)
        for strike in run.strikes:
            strike.exact = same
        strikes += run.strikes
        print(f"run {number}: {len(strikes)} strikes, {len(plan)} to come", file=sys.stderr)
    return strikes, wrong


class Run:
    """A work directory in which processes train until they are struck."""

    def __init__(self, workdir: Path, pace: float) -> None:
        self._workdir, self._pace, self._board = workdir, pace, Board()
        self.strikes: list[Strike] = []
        # The strike whose cost the next process will find, and how far the run had come then.
        self._open: Strike | None = None
        self._reached = 0

    def leg(self, strike: Strike | None, rng: random.Random, length: float = 0.0) -> int:
        """Runs a process until it ends or is struck, and returns its status: 0 where it is done."""
        board = self._board
        board.tell(front=0, back=0, done=-1, restored=-1)
        process = os.fork()
        if not process:
            child(self._workdir, board, self._pace)
        until, hit = time.monotonic() + TIMEOUT, False
        try:
            if strike is not None:
                hit = aimed(process, board, strike.phase, rng, length, until)
                if hit:
                    os.kill(process, SIGNALS[strike.signal])
            status = ended(process, until)
        finally:
            if ended(process, 0) is None:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        struck = strike if hit and status != 0 else None
        if struck is not None:
            self.strikes.append(struck)
        if board.restored >= 0:
            self._account(struck)
        return -1 if status is None else status

    def _account(self, strike: Strike | None) -> None:
        """Charges an earlier strike with the steps that this process found undone."""
        board = self._board
        if self._open is not None:
            self._open.lost = max(self._reached - board.restored, 0)
        self._open, self._reached = strike, max(board.done, board.restored)

    def digest(self) -> str:
        """Returns the hash of the last state, the metrics and the results."""
        return (self._workdir / "digest").read_text()

    def log(self) -> str:
        """Returns what the processes printed."""
        return Path(f"{self._workdir}.log").read_text()


def aimed(
    process: int, board: Board, phase: str, rng: random.Random, length: float, until: float
) -> bool:
    """Returns at a random instant of a phase; False where the run ended before."""
    if phase not in ("start", "restore", "compile", "measure"):
        time.sleep(rng.uniform(0, 0.3) * length)
    while not board.phase(phase):
        if gone(process) or time.monotonic() > until:
            return False
        time.sleep(0.0003)
    begin, delay = time.monotonic(), rng.uniform(0, 0.02)
    if phase == "start":
        delay = rng.uniform(0, 0.3) * length
    elif phase == "compile":
        delay = rng.uniform(0, 0.15) * length
    while time.monotonic() < begin + delay and (phase == "step" or board.phase(phase)):
        time.sleep(0.0002)
    return not gone(process)


def gone(process: int) -> bool:
    """Whether a process has ended, and waits to be asked for its status."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def ended(process: int, until: float) -> int | None:
    """Returns the status of a process once it has ended, None where it has not by then."""
    while True:
        try:
            found, status = os.waitpid(process, os.WNOHANG)
        except ChildProcessError:
            return 0
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.001)


def child(workdir: Path, board: Board, pace: float) -> NoReturn:
    """Trains, as `bigr train` does, and leaves the hash of what it ended with."""
    status = 1
    try:
        log = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from bigr_jax.cli.main import main as bigr

        observe(board, pace)
        status = bigr(["train", f"--config={CONFIG}", f"--workdir={workdir}"])
        if status == 0:
            (workdir / "digest").write_text(digest(workdir))
    finally:
        sys.stderr.flush()
        os._exit(status)


def observe(board: Board, pace: float) -> None:
    """Has the trainer tell the board where it stands, and makes every step last a while."""
    from bigr_jax.train import loop, manifest, run
    from bigr_jax.train.checkpoints import Checkpoints
    from bigr_jax.train.status import Status
    from bigr_jax.train.writer import Metrics

    def within(phase: str, owner: Any, name: str, after: Callable[..., None] | None = None) -> None:
        call, place, names = getattr(owner, name), *spot(phase)

        def patched(*args: Any, **settings: Any) -> Any:
            before = getattr(board, place)
            board.tell(**{place: names.index(phase)})
            try:
                found = call(*args, **settings)
            finally:
                board.tell(**{place: before})
            if after is not None:
                after(*args)
            return found

        setattr(owner, name, patched)

    def told(owner: Any, name: str, tell: Callable[..., None]) -> None:
        call = getattr(owner, name)

        def patched(*args: Any, **settings: Any) -> Any:
            tell(*args)
            return call(*args, **settings)

        setattr(owner, name, patched)

    def slow(batches: Any, mesh: Any) -> Iterator[Any]:
        for batch in placed(batches, mesh):
            time.sleep(pace)
            yield batch

    patched: Any = loop
    placed, patched.device_batches = loop.device_batches, slow
    within("restore", Checkpoints, "restore")
    within("compile", loop, "compile_step")
    within("evaluate", loop.Evaluator, "__call__")
    within("measure", run.Run, "measure")
    within("copy", Checkpoints, "save", lambda *_: board.tell(back=BACK.index("write")))
    within("hash", manifest, "write", lambda *_: board.tell(back=BACK.index("rename")))
    told(Status, "start", lambda *_: board.tell(front=FRONT.index("step")))
    told(Status, "step", lambda _, step, *rest: board.tell(done=step))
    told(Metrics, "rewind", lambda _, stage, step: board.tell(restored=step))


def spot(phase: str) -> tuple[str, Sequence[str]]:
    """Returns the cell of the board that tells a phase, and the phases that it tells."""
    return ("front", FRONT) if phase in FRONT else ("back", BACK)


def digest(workdir: Path) -> str:
    """Returns the hash of the newest state, bit by bit, the metrics and the results."""
    import jax
    import numpy as np

    from bigr_jax import config as configs
    from bigr_jax import files
    from bigr_jax.train.run import Run as Training

    found = hashlib.sha256((workdir / "metrics.jsonl").read_bytes())
    results = files.read_json(workdir / "results.json")
    assert results is not None
    # Time goes on while a run is struck.
    del results["stages"][STAGE]["seconds"]
    found.update(repr(results).encode())
    training = Training(configs.load(CONFIG), str(workdir))
    with training.checkpoints(STAGE) as checkpoints:
        state, _ = checkpoints.restore(training.plan(STAGE).abstract)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def table(strikes: Sequence[Strike]) -> Iterator[Sequence[str]]:
    """Yields the lines of the table, a row per signal and phase, and one per signal."""
    header = ("signal", "phase", "strikes", "ended exactly", "steps lost", "most")
    yield header
    yield ["---"] * len(header)
    for name in SIGNALS:
        mine = [strike for strike in strikes if strike.signal == name]
        for phase in [*PHASES, "all"]:
            some = [strike for strike in mine if phase in (strike.phase, "all")]
            if some:
                lost = [strike.lost for strike in some]
                exact = str(sum(strike.exact for strike in some))
                middle = f"{statistics.median(lost):g}"
                yield name, phase, str(len(some)), exact, middle, str(max(lost))


if __name__ == "__main__":
    sys.exit(main())
