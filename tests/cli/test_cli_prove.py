"""`bigr prove` on whole studies: killed in the middle, broken, and with programs compiled once."""

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

from bigr_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "tiny.py")
SECONDS = 200
Capture = pytest.CaptureFixture[str]


def evidence(folder: Path, name: str = "tiny") -> dict[str, Any]:
    """Returns what was written, without the time that it took."""
    found = json.loads((folder / f"{name}.json").read_text())
    assert found.pop("seconds") > 0
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a study that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    words = [f"--workdir={folder}/work", f"--results={folder}/results"]
    assert main(["prove", f"--config={TINY}", *words]) == 0
    return folder


def test_claims_are_printed_with_their_figures(straight: Path, capsys: Capture) -> None:
    words = [f"--workdir={straight}/work", f"--results={straight}/again"]
    assert main(["prove", f"--config={TINY}", *words]) == 0
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "holds          a higher rate learns faster"
    assert lines[1].startswith("               loss 2.1") and " over 2 seeds, lower" in lines[1]
    assert lines[2] == "holds          more noise spreads more"
    assert lines[4].startswith("2 of 2 claims hold, ")
    assert lines[5:] == [f"{straight}/again/tiny.json", f"{straight}/again/tiny.png"]
    # Nothing is trained or measured twice, and the time is that of the first call.
    assert error.count("measured before\n") == error.count("\n") == 8
    first, second = straight / "results", straight / "again"
    assert (first / "tiny.json").read_text() == (second / "tiny.json").read_text()
    assert sorted(p.name for p in first.iterdir()) == ["tiny-samples.png", "tiny.json", "tiny.png"]


def logged(name: str, stage: str, step: int) -> Callable[[Path], bool]:
    """Returns whether an arm's metrics.jsonl has a row of a step."""

    def seen(work: Path) -> bool:
        path = work / name / "metrics.jsonl"
        return path.exists() and f'"stage": "{stage}", "step": {step},' in path.read_text()

    return seen


BREAKS = (
    (logged("first/train.first.optimizer.lr=0.1-seed0", "first", 6), signal.SIGKILL, (-9,)),
    # Between two stages it dies at once, else it says what it saved.
    (logged("base-seed1", "first", 2), signal.SIGTERM, (143, -15)),
)


def test_a_study_that_is_killed_goes_on(straight: Path, tmp_path: Path) -> None:
    words = [f"--config={TINY}", f"--workdir={tmp_path}/work", f"--results={tmp_path}/results"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    for instant, signum, statuses in BREAKS:
        command = [sys.executable, "-m", "bigr_jax", "prove", *words]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + SECONDS
        try:
            while not instant(tmp_path / "work") and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.002)
            process.send_signal(signum)
            assert process.wait(SECONDS) in statuses
        finally:
            process.kill()
        assert not (tmp_path / "results" / "tiny.json").exists()
    assert main(["prove", *words]) == 0
    assert evidence(tmp_path / "results") == evidence(straight / "results")
    for name in ("tiny.png", "tiny-samples.png"):
        found, expected = (folder / "results" / name for folder in (tmp_path, straight))
        assert found.read_bytes() == expected.read_bytes()


def test_a_broken_method_comes_out_as_broken(
    straight: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = Path(TINY).read_text()
    broken = text.replace("return value, Aux(", "return -value, Aux(")
    assert broken != text
    (tmp_path / "tiny.py").write_text(broken)
    words = [f"--workdir={tmp_path}/work", f"--results={tmp_path}"]
    assert main(["prove", f"--config={tmp_path}/tiny.py", *words]) == 0
    out = capsys.readouterr().out
    assert "does not hold  a higher rate learns faster\n" in out
    assert "holds          more noise spreads more\n" in out
    assert "\n1 of 2 claims hold, " in out
    assert [claim["holds"] for claim in evidence(tmp_path)["claims"]] == [False, True]
    assert [claim["holds"] for claim in evidence(straight / "results")["claims"]] == [True, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.study.seeds=0"], "config.study.seeds=0 must be 1 or more"),
        (["--config.study.seed=1"], "config.study.seed is not a key (did you mean 'seeds'?)"),
        (["--results=HERE/file"], "--results=HERE/file cannot be made: File exists"),
        (
            ["--config.method.poison=loss", "--config.method.at=3"],
            "arm 'slow', seed 0: the loss of stage 'first' is nan at step 3; the first that ",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    given = [f"--workdir={tmp_path}/work", f"--results={tmp_path}/results"]
    given += [word.replace("HERE", str(tmp_path)) for word in words]
    assert main(["prove", f"--config={TINY}", *given]) == 2
    out, error = capsys.readouterr()
    (line,) = [line for line in error.splitlines() if line.startswith("bigr: ")]
    assert out == ""
    assert line.startswith(f"bigr: {message.replace('HERE', str(tmp_path))}")
    assert error.endswith(line + "\n")


def test_other_seeds_and_settings_that_are_data_compile_nothing(
    run_python: Any, tmp_path: Path
) -> None:
    code = (
        "import sys, jax; from jax import monitoring; from bigr_jax import config;"
        "from bigr_jax.lab import Lab; events = [];"
        "monitoring.register_event_listener(lambda name, **kw: events.append(name));"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0);"
        "lab = Lab(config.load(sys.argv[1]), sys.argv[2], sys.argv[2])\n"
        "for seed in (0, 1):\n"
        "    events.clear()\n"
        "    run = lab.train('a', {}, seed)\n"
        "    run.evaluate('second'); run.report('second', seed)\n"
        "    print(*(sum(e.endswith(n) for e in events) for n in ('misses', 'hits')))\n"
    )
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    done = run_python(["-c", code, TINY, str(tmp_path)], env=cache)
    assert done.returncode == 0, done.stderr
    (first, _), (second, found) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert first >= 5
    # The train steps and evaluations of both stages, and their beginnings, come from the cache.
    assert second == 0 and found >= 5
