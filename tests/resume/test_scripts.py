"""Short forms of the scripts that kill runs and move them to other devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_struck_runs_end_as_the_undisturbed_one(run_python: Any, tmp_path: Path) -> None:
    out = tmp_path / "strikes.json"
    words = ["scripts/chaos.py", "--kills=4", "--terms=2", "--pace=0.02", f"--json={out}"]
    done = run_python(words)
    assert done.returncode == 0, done.stdout + done.stderr
    strikes = json.loads(out.read_text())
    assert len(strikes) == 6 and all(strike["exact"] for strike in strikes)
    assert [s["signal"] for s in strikes].count("SIGTERM") == 2
    assert "| SIGKILL | all | 4 | 4 |" in done.stdout and "| SIGTERM | all | 2 | 2 |" in done.stdout


def test_other_devices_restore_the_same_bytes(run_python: Any, tmp_path: Path) -> None:
    out, layouts = tmp_path / "pairs.json", ("data=1", "fsdp=8", "data=2,fsdp=2,model=2")
    words = ["scripts/reshard.py", "--config=scripts/recorder.py", "--stage=recorder"]
    done = run_python([*words, *(f"--layout={one}" for one in layouts), f"--json={out}"])
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = json.loads(out.read_text())
    assert {(p["made"], p["restored"]) for p in pairs} == {(a, b) for a in layouts for b in layouts}
    assert all(pair["bytes"] == 0 and pair["loss"] <= 1e-6 for pair in pairs)
    assert "9 of 9 pairs" in done.stdout
