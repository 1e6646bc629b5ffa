"""`bigr plan`: on simulated devices, for a TPU that is not here, and its mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bigr_jax.cli.main import main

TINY = str(Path(__file__).resolve().parents[1] / "tiny.py")


@pytest.fixture(scope="module")
def planned(run_python: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Output and numbers of a plan on four simulated devices, with a search."""
    path = tmp_path_factory.mktemp("plan") / "numbers.json"
    words = ["plan", f"--config={TINY}", "--mesh=data=2,fsdp=2", "--search", f"--json={path}"]
    done = run_python(["-m", "bigr_jax", *words])
    assert done.returncode == 0, done.stderr
    return {"out": done.stdout, "err": done.stderr, **json.loads(path.read_text("utf-8"))}


def test_parameters_and_what_a_device_holds_of_them(planned: Any) -> None:
    rows = re.findall(r"^params/\S+ .*$", planned["out"], re.MULTILINE)
    assert re.search(r"embed, mlp +\| \(fsdp, -\) 1/2 +\|", rows[1])
    assert planned["machine"]["mesh"] == {"data": 2, "fsdp": 2, "model": 1, "seq": 1}
    memory = planned["stages"]["first"]["step"]["memory"]
    # A kernel of 16 x 10 and a bias of 10, in halves, and a counter of steps.
    assert memory["parameters"] == (16 * 10 + 10) * 4 // 2 + 4
    assert planned["stages"]["first"]["step"]["total"] == sum(memory.values())


def test_the_sampler_is_planned_too(planned: Any) -> None:
    assert "sampler" not in planned["stages"]["first"]
    assert planned["stages"]["second"]["sampler"]["memory"]["parameters"] > 0
    assert "sampler, 80 images, per chip" in planned["out"]


def test_the_least_is_a_gather_each_way_and_sums_of_gradients(planned: Any) -> None:
    step = planned["stages"]["first"]["step"]
    part = (16 * 10 + 10) * 4 // 2
    # n = 2: 3 (n - 1) / n S, and over d = 2: 2 (d - 1) / d S / n.
    assert step["minimum"] == 3 * part + part
    assert step["moved"] == pytest.approx(sum(e["moved"] for e in step["collectives"].values()))
    assert step["moved"] > 0


def test_progress_and_verdicts(planned: Any) -> None:
    assert "compiling the train step of first for data=2, fsdp=2 ..." in planned["err"]
    assert "data: digits, 1,438 examples, here" in planned["out"]
    assert planned["stages"]["first"]["step"]["fits"] is None


def test_a_search_lists_batch_sizes(planned: Any) -> None:
    sizes = {choice["batch_size"] for choice in planned["stages"]["first"]["choices"]}
    assert sizes == {4, 8, 16, 32, 64}
    totals = {c["batch_size"]: c["total"] for c in planned["stages"]["first"]["choices"]}
    assert totals[64] > totals[8]


def test_for_a_tpu_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libtpu")
    words = [f"--config={TINY}", "--topology=v5e:2x2", "--stage=first"]
    assert main(["plan", *words, "--config.train.first.batch_size=64"]) == 0
    out = capsys.readouterr().out
    assert "on v5e:2x2: 4 x TPU v5 lite, data=4" in out
    assert re.search(r"total .* of 15.75 GiB: fits, 15.\d\d GiB to spare", out)
    assert "MFU at most" in out
    assert "mesh.fsdp=4 would leave" in out
    assert "# second" not in out


def test_a_stage_whose_batch_the_mesh_does_not_divide_is_passed_over(run_python: Any) -> None:
    words = ["-m", "bigr_jax", "plan", f"--config={TINY}", "--mesh=data=4"]
    done = run_python([*words, "--config.train.first.batch_size=6"])
    assert done.returncode == 0, done.stderr
    assert "# first\nnot planned: train.first.batch_size=6 must be a multiple of" in done.stdout
    assert "# second\nparameter " in done.stdout and "train step, batch 8" in done.stdout
    asked = run_python([*words, "--config.train.first.batch_size=6", "--stage=first"])
    assert asked.returncode == 2 and asked.stderr.startswith("bigr: train.first.batch_size=6 must")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology=v5e:7x7"], "--topology=v5e:7x7 is no TPU slice; legal: "),
        (["--mesh=data=two"], "--mesh=data=two: 'data=two' is not AXIS=SIZE"),
        (["--stage=third"], "--stage=third is no stage"),
        (["--json=."], "--json=. is a folder"),
        (["--topologie=v5e:2x2"], "did you mean '--topology'?"),
        (["--config.data.source=folder:/nowhere"], "say what they are: --config.data.channels="),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", f"--config={TINY}", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_missing_compiler_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["plan", f"--config={TINY}", "--topology=v5e:2x2"]) == 2
    assert "pip install 'libtpu==0.0." in capsys.readouterr().err
