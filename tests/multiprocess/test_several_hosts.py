"""Runs of 2 and 4 processes against the run of one."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from bigr_jax.cli.main import main
from bigr_jax.train import writer
from bigr_jax.train.workdir import WRITER

HERE = Path(__file__).parent
CONFIG = "--config=tests/tiny.py"
LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2), "4x1": (4, 1)}


class Seen(NamedTuple):
    """A work directory and what `observing.py` told of it."""

    workdir: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def seen(launch, tmp_path_factory) -> dict[str, Seen]:
    """{layout: what it trained, and what it made of what 2x2 had trained}."""
    folder, found = tmp_path_factory.mktemp("seen"), {}
    for name in ("2x2", "1x4", "4x1"):
        count, devices = LAYOUTS[name]
        workdir, out = folder / name, folder / f"{name}.json"
        other = folder / "2x2"
        words = [str(HERE / "observing.py"), str(workdir), str(other), str(out)]
        launch(words, count, devices).good()
        found[name] = Seen(workdir, json.loads(out.read_text()))
    return found


def series(workdir: Path, name: str) -> list[float]:
    return [row[name] for row in writer.read(workdir, "first") if name in row]


@pytest.mark.parametrize("layout", ["2x2", "4x1"])
def test_the_order_of_the_data_is_that_of_one_process(seen, layout):
    one, several = seen["1x4"].told, seen[layout].told
    assert several["indices"] == one["indices"] and several["later"] == one["later"]
    assert one["later"][:10] == one["indices"][20:]
    first = series(seen[layout].workdir, "first_index")
    assert first == series(seen["1x4"].workdir, "first_index")
    assert first == [batch[0] for batch in one["indices"][:12]]


@pytest.mark.parametrize("layout", ["1x4", "2x2", "4x1"])
def test_processes_of_one_model_axis_feed_the_same_rows(seen, layout):
    assert seen[layout].told["model"] == list(range(8))


@pytest.mark.parametrize("layout", ["2x2", "4x1"])
def test_several_processes_learn_what_one_does(seen, layout):
    for name in ("loss", "grad_norm", "test/loss"):
        one, several = (series(seen[key].workdir, name) for key in ("1x4", layout))
        assert len(one) >= 2
        np.testing.assert_allclose(several, one, rtol=1e-5)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_two_and_four_processes_give_the_same_bits(seen, saved, stage):
    two, four = (saved(seen[key].workdir, stage) for key in ("2x2", "4x1"))
    one = saved(seen["1x4"].workdir, stage)
    assert two.keys() == four.keys() == one.keys()
    for path in two:
        assert two[path].tobytes() == four[path].tobytes(), path
        np.testing.assert_allclose(two[path], one[path], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_restored_bytes_do_not_depend_on_the_number_of_hosts(seen, stage):
    digests = {layout: seen[layout].told[stage] for layout in LAYOUTS}
    assert len(set(digests.values())) == 1, digests


def test_several_processes_measure_and_draw_what_one_does(seen):
    for stage in ("first", "second"):
        one, *others = (seen[key].told[f"{stage} measured"] for key in LAYOUTS)
        for other in others:
            assert other == pytest.approx(one, rel=1e-5)
    pictures = {Path(seen[key].told["picture"]).read_bytes() for key in LAYOUTS}
    assert len(pictures) == 1


@pytest.mark.parametrize("layout", ["2x2", "4x1"])
def test_process_0_alone_writes_and_speaks(seen, layout):
    workdir = seen[layout].workdir
    here = {path.name for path in workdir.iterdir()}
    assert here == {path.name for path in seen["1x4"].workdir.iterdir()}
    results = json.loads((workdir / "results.json").read_text())["stages"]
    assert results["second"]["report"].keys() == {"brightness", "spread"}
    assert json.loads((workdir / "env.json").read_text())["processes"] == LAYOUTS[layout][0]
    steps = [row["step"] for row in writer.read(workdir, "first") if "loss" in row]
    assert steps == list(range(1, 13))
    assert (workdir / WRITER).read_text() == ""


SETTINGS = (
    "train",
    CONFIG,
    "--stage=first",
    "--config.train.first.duration=300 steps",
    "--config.train.first.save=20 steps",
    "--config.train.first.evaluate=0 steps",
    "--config.train.first.log=100 steps",
)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory) -> Path:
    """A work directory that the next four tests train in, one after the other."""
    return tmp_path_factory.mktemp("disturbed") / "run"


def slowly(launch, workdir) -> Any:
    """Starts to train and returns the processes when they have saved something new."""
    before = newest(workdir)
    group = launch([str(HERE / "slowly.py"), *SETTINGS, f"--workdir={workdir}"], 2, 2)
    group.until(lambda: newest(workdir) > before)
    return group


def newest(workdir: Path) -> int:
    steps = [path.name for path in (workdir / "first" / "checkpoints").glob("*")]
    return max((int(name) for name in steps if name.isdigit()), default=0)


def test_the_death_of_one_ends_the_others_with_a_line(launch, disturbed):
    group = slowly(launch, disturbed)
    group.processes[1].send_signal(signal.SIGKILL)
    survivor, dead = group.wait()
    assert dead.status == -signal.SIGKILL and survivor.status == 1
    assert survivor.seconds < 30
    pid, step = group.processes[1].pid, newest(disturbed)
    assert re.fullmatch(
        rf"bigr: process 1 \(host \S+, pid {pid}\) is gone; the checkpoint of step {step} of stage "
        "'first' is intact; the same command goes on from there",
        survivor.err.splitlines()[-1],
    ), survivor.err
    assert "Traceback" not in survivor.err


def test_the_death_of_process_0_ends_the_others_with_a_line(launch, disturbed):
    group = slowly(launch, disturbed)
    group.processes[0].send_signal(signal.SIGKILL)
    dead, survivor = group.wait()
    assert dead.status == -signal.SIGKILL and survivor.status == 1
    assert survivor.seconds < 30
    (line,) = survivor.err.splitlines()
    assert line.startswith("bigr: process 0 (host ") and " is gone; the checkpoint of" in line
    assert f"step {newest(disturbed)} of stage 'first' is intact" in line


def test_a_second_writer_is_refused_while_the_first_trains(launch, disturbed, capsys):
    group = slowly(launch, disturbed)
    assert main([*SETTINGS, f"--workdir={disturbed}"]) == 2
    line = capsys.readouterr().err
    assert f"{disturbed} is being trained by process {group.processes[0].pid} on" in line
    # A signal to one stops all, at the same step.
    group.processes[1].send_signal(signal.SIGTERM)
    ended = group.wait()
    assert [done.status for done in ended] == [128 + signal.SIGTERM] * 2
    stopped = f"bigr: stopped at step {newest(disturbed)} of 300 of stage 'first', saved; "
    assert stopped in ended[0].err and ended[1].err == ""


def test_what_was_disturbed_is_trained_on_as_if_nothing_had_been(launch, disturbed, saved):
    assert 60 <= newest(disturbed) < 300
    straight = disturbed.with_name("straight")
    groups = [
        launch(["-m", "bigr_jax", *SETTINGS, f"--workdir={workdir}"], 2, 2)
        for workdir in (disturbed, straight)
    ]
    for group in groups:
        group.good()
    resumed, reference = saved(disturbed, "first"), saved(straight, "first")
    assert resumed.keys() == reference.keys()
    for path, leaf in reference.items():
        assert resumed[path].tobytes() == leaf.tobytes(), path


def test_another_config_is_refused_before_the_first_step(launch, tmp_path):
    words = ["-m", "bigr_jax", "train", CONFIG, f"--workdir={tmp_path / 'run'}"]
    other = {1: ["--config.train.first.batch_size=16"]}
    for done in launch(words, 2, each=other).wait():
        assert done.status == 2
        line = done.err.splitlines()[-1]
        assert re.match(r"bigr: process 1 \(host \S+, pid \d+\) was started with another ", line)
        assert "config: train.first.batch_size is 16, process 0 has 8" in line
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_ends_the_others_with_its_line(launch, tmp_path):
    words = ["-m", "bigr_jax", "train", CONFIG, f"--workdir={tmp_path / 'run'}"]
    own, other = launch(words, 2, each={0: ["--config.seeed=1"]}).wait()
    assert own.status == 2 and "seeed" in own.err.splitlines()[-1]
    assert other.status == 1
    assert re.match(r"bigr: process 0 \(host \S+, pid \d+\) ended: .*seeed", other.err)


def test_a_directory_that_the_hosts_do_not_share_is_refused(launch, tmp_path):
    """Each process runs in a folder of its own, in which it names the same one."""
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    words = [str(HERE / "apart.py"), str(tmp_path), str(HERE.parent / "tiny.py")]
    own, other = launch(words, 2).wait()
    assert own.status == 1 and other.status == 2
    assert re.search(r"--workdir=run on \S+ is not the directory that process 0 on", other.err)


def test_bigr_trains_reports_and_draws_on_two_processes(launch, smoke, tmp_path):
    workdir = tmp_path / "run"
    words = ["train", "--config=bigr:smoke", "--stage=generator", f"--base={smoke}"]
    words += [f"--config.train.generator.{name}=3 steps" for name in ("duration", "save")]
    words += ["--config.train.generator.evaluate=0 steps", f"--workdir={workdir}"]
    done, quiet = launch(["-m", "bigr_jax", *words], 2).good()
    assert quiet.out == "" and quiet.err == ""
    assert "samples.png" in done.out
    results = json.loads((workdir / "results.json").read_text())["stages"]["generator"]
    assert results["test"].keys() == {"loss", "bits_per_image"}
    report = results["report"]
    assert {"frechet", "agreement", "probe", "referee_test_accuracy"} <= report.keys()
    assert all(np.isfinite(value) for value in report.values())
    words = ["sample", f"--workdir={workdir}", "--per_class=1", "--classes=1,2"]
    launch(["-m", "bigr_jax", *words], 2).good()
    assert (workdir / "samples-seed0.png").read_bytes().startswith(b"\x89PNG")
