"""scripts/meshes.py: its table, and that it tells a run that is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "meshes.py"
TINY = str(ROOT / "tests" / "tiny.py")


@pytest.fixture(scope="module")
def meshes() -> Any:
    spec = importlib.util.spec_from_file_location("meshes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_experiment_on_every_kind_of_mesh(run_python: Any, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = [str(SCRIPT), f"--config={TINY}", "--steps=2", f"--json={out}"]
    done = run_python([*words, "--mesh=fsdp=4", "--mesh=data=2,model=2"])
    assert done.returncode == 0, done.stderr
    assert "all as on one device" in done.stdout
    rows = json.loads(out.read_text())
    assert [row["mesh"] for row in rows[::2]] == ["data=1", "fsdp=4", "data=2,model=2"]
    assert len(rows) == 6 and len({row["start"] for row in rows}) == 2
    assert rows[2]["parameters"] < 0.5 and all(len(row["losses"]) == 2 for row in rows)


def test_what_differs_is_told(meshes: Any) -> None:
    def row(mesh: str, loss: float, start: str, constraints: int) -> dict[str, Any]:
        found = {"losses": [{"loss": loss}], "start": start, "constraints": constraints}
        return {"stage": "s", "mesh": mesh, "parameters": 1.0, "optimizer": 1.0, **found}

    good = [row("data=1", 2.0, "a", 0), row("data=2", 2.00001, "a", 3), row("fsdp=2", 2.0, "a", 3)]
    # Over seq another form may declare more.
    good += [row("seq=2", 2.0, "a", 7), row("data=2,seq=2", 2.0, "a", 7)]
    for wrong in (
        row("model=2", 2.0001, "a", 3),
        row("model=2", 2.0, "b", 3),
        row("model=2", 2, "a", 2),
        row("seq=4", 2, "a", 6),
    ):
        found = [meshes.holds(meshes.compared(each, [*good, wrong])) for each in [*good, wrong]]
        assert found == [True] * len(good) + [False]


def test_a_number_of_devices_without_meshes(meshes: Any) -> None:
    with pytest.raises(SystemExit):
        meshes.arguments(["--devices=3"])
