"""Ctrl-C: one line, status 130, no traceback and nothing half written, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bigr_jax import interrupts
from bigr_jax.cli import main as entry

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "tiny.py")
SIGINT = signal.SIGINT
STATUS = 128 + SIGINT
# A process that says when it is there, and what it then does.
READY = "import sys, time; from bigr_jax import interrupts; interrupts.install()\n"
THERE = "print('there', flush=True)\n"
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 24)"
IN_A_DESTRUCTOR = """
import os, signal
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
try:
    Late()
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""
# Ctrl-C as soon as a part of JAX is imported, and the rest is not.
IMPORTING = """
import os, signal, sys, threading, time
def wait():
    while "jax._src.core" not in sys.modules: time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=wait, daemon=True).start()
from bigr_jax.__main__ import run
sys.exit(run())
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Returns a function (words after `python`) -> the process; none outlives the test."""
    begun: list[subprocess.Popen[str]] = []
    # Where tests run in the background it is ignored, and so it would be in what they start.
    before = signal.signal(SIGINT, signal.default_int_handler)

    def run(*words: str, ignored: bool = False) -> subprocess.Popen[str]:
        if ignored:
            words = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, *words)
        else:
            words = (sys.executable, *words)
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        begun.append(
            subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT)
        )
        return begun[-1]

    yield run
    signal.signal(SIGINT, before)
    for process in begun:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns a process's exit status and what it wrote to stderr."""
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def appears(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < end
        time.sleep(0.005)


def test_while_jax_is_imported(start: Start) -> None:
    assert ended(start("-c", IMPORTING, "sample", "--workdir=none")) == (
        STATUS,
        "bigr: interrupted\n",
    )


def test_while_codes_are_written(start: Start, smoke: Path, tmp_path: Path) -> None:
    words = ("-m", "bigr_jax", "encode", f"--workdir={smoke}", f"--out={tmp_path / 'codes'}")
    process = start(*words)
    appears(tmp_path / "codes" / "codes.json", process)
    process.send_signal(SIGINT)
    status, error = ended(process)
    assert (status, error.splitlines()[-1]) == (STATUS, "bigr: interrupted")
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.part"))


def test_while_a_sweep_trains(start: Start, tmp_path: Path) -> None:
    where = f"--workdir={tmp_path / 'sweep'}"
    words = ("sweep", f"--config={TINY}", where, "--stage=first", "method.noise=0.1,0.2")
    process = start("-m", "bigr_jax", *words)
    appears(tmp_path / "sweep" / "first" / "base-seed0" / "params.txt", process)
    process.send_signal(SIGINT)
    status, error = ended(process)
    assert status == STATUS
    assert error.splitlines()[-1].startswith("bigr: ")
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.part"))


def test_what_does_not_hear_says_so_and_ends_at_the_second(start: Start) -> None:
    process = start("-c", READY + THERE + IN_C)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "there\n"
    time.sleep(0.1)
    process.send_signal(SIGINT)
    assert process.stderr.readline() == interrupts._WAITING + "\n"
    process.send_signal(SIGINT)
    assert ended(process) == (STATUS, "")


def test_none_is_lost_in_a_destructor(start: Start) -> None:
    assert ended(start("-c", READY + IN_A_DESTRUCTOR)) == (STATUS, "")


def test_a_job_in_the_background_goes_on(start: Start) -> None:
    process = start("-c", READY + THERE + "time.sleep(0.3)", ignored=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(SIGINT)
    assert ended(process) == (0, "")


def test_an_error_that_a_library_makes_of_it_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise RuntimeError("a callback failed")

    monkeypatch.setattr(entry, "_run", fail)
    monkeypatch.setattr(interrupts, "_raised", True)
    assert entry.main(["list"]) == STATUS
    assert capsys.readouterr().err == "bigr: interrupted\n"
