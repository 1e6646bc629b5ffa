"""The scripts that start runs on clusters, with stand-ins for gcloud, xpk, srun and scontrol that
note what they are called with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NOTE = 'printf "%s\\n" "$(basename "$0") $*" >>"$CALLS"\n'


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Returns a function (stand-ins, script, *words, **environment) that starts a script; every
    stand-in notes its call in `calls` before its own lines are run.
    """

    def start(
        stands: Mapping[str, str], script: str, *words: str, **env: str
    ) -> subprocess.Popen[str]:
        for name, lines in stands.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{NOTE}{lines}\n")
            path.chmod(0o755)
        paths = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        environment = {**os.environ, "PATH": paths, "CALLS": str(tmp_path / "calls"), **env}
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *words],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns the exit status and all output."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


SLICE = {"NAME": "pod", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "POLL": "0"}


def test_a_slice_is_asked_for_and_waited_for(started: Any, tmp_path: Path) -> None:
    gcloud = (
        "if [[ $* == *describe* ]]; then n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n;\n"
        "  [[ $n -lt 2 ]] && echo PROVISIONING || echo ACTIVE; fi"
    )
    status, text = ended(started({"gcloud": gcloud}, "tpu_vm.sh", "create", **SLICE, SPOT="1"))
    assert status == 0 and text.count("PROVISIONING; waiting") == 2
    first, *rest = calls(tmp_path)
    assert first == (
        "gcloud compute tpus queued-resources create pod --node-id=pod "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--zone=us-west4-a"
    )
    assert len(rest) == 3


def test_a_slice_that_cannot_be_had_is_an_error(started: Any) -> None:
    gcloud = "[[ $* == *describe* ]] && echo FAILED; true"
    status, text = ended(started({"gcloud": gcloud}, "tpu_vm.sh", "create", **SLICE))
    assert status == 1 and "the slice pod is FAILED" in text


def test_a_command_goes_to_every_host_word_for_word(started: Any, tmp_path: Path) -> None:
    words = ["bigr", "train", "--config=bigr:paper", "--workdir=bucket/two words"]
    status, text = ended(started({"gcloud": "true"}, "tpu_vm.sh", "run", *words, **SLICE))
    assert status == 0, text
    (call,) = calls(tmp_path)
    assert "tpu-vm ssh pod --worker=all --command=" in call
    assert r"bigr train --config=bigr:paper --workdir=bucket/two\ words --distributed" in call


def test_after_a_preemption_another_slice_takes_the_run_up(started: Any, tmp_path: Path) -> None:
    gcloud = (
        'case "$*" in\n'
        "  *describe*) if [[ -e gone ]]; then echo SUSPENDED; else echo ACTIVE; fi ;;\n"
        '  *"bigr train"*) if [[ ! -e once ]]; then touch once gone; exit 1; fi ;;\n'
        "  *create*) rm -f gone ;;\n"
        "esac"
    )
    stands = {"gcloud": gcloud, "git": "true"}
    status, text = ended(started(stands, "tpu_vm.sh", "keep", "bigr", "train", **SLICE))
    assert status == 0, text
    assert "the slice pod was preempted; asking for another" in text
    kinds = [
        kind
        for call in calls(tmp_path)
        for kind in ("bigr train", "resources delete", "resources create", "tpu-vm scp")
        if kind in call
    ]
    assert kinds == [
        "bigr train", "resources delete", "resources create", "tpu-vm scp", "bigr train"
    ]  # fmt: skip


def test_an_error_of_the_run_itself_does_not_ask_for_another_slice(started: Any) -> None:
    gcloud = '[[ $* == *"bigr train"* ]] && exit 2; [[ $* == *describe* ]] && echo ACTIVE; true'
    status, text = ended(started({"gcloud": gcloud}, "tpu_vm.sh", "keep", "bigr", "train", **SLICE))
    assert status == 1 and "ended with an error on a slice that stands" in text


def test_a_workload_of_xpk(started: Any, tmp_path: Path) -> None:
    words = ["xpk.sh", "bigr-l", "bigr", "train", "--config=bigr:paper"]
    status, text = ended(started({"xpk": "true"}, *words, **SLICE, CLUSTER="c", SLICES="2"))
    assert status == 0, text
    (call,) = calls(tmp_path)
    assert call.startswith("xpk workload create --cluster=c --workload=bigr-l ")
    assert "--tpu-type=v5litepod-16 --num-slices=2 " in call and "--max-restarts=50" in call
    assert call.endswith("&& bigr train --config=bigr:paper --distributed")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "xpk.sh", "slurm.sbatch"])
def test_without_words_it_says_how_it_is_used(started: Any, script: str) -> None:
    status, text = ended(started({}, script, **SLICE))
    assert status == 2 and f"scripts/{script}" in text and "#" not in text


def test_slurm_passes_the_status_on(started: Any, tmp_path: Path) -> None:
    stands = {"srun": "exit 3", "scontrol": "true"}
    status, _ = ended(started(stands, "slurm.sbatch", "bigr", "train", SLURM_JOB_ID="7"))
    assert status == 3
    assert calls(tmp_path) == ["srun --kill-on-bad-exit=1 bigr train --distributed"]


def test_before_its_time_is_up_a_job_of_slurm_saves_and_is_queued_again(
    started: Any, tmp_path: Path
) -> None:
    srun = "trap 'sleep 0.3; touch saved; exit 143' TERM; touch ready; while :; do sleep 0.05; done"
    stands = {"srun": srun, "scontrol": "test -e saved"}
    process = started(stands, "slurm.sbatch", "bigr", "train", SLURM_JOB_ID="7")
    until = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    status, text = ended(process)
    assert status == 0, text
    assert (tmp_path / "saved").exists()
    assert calls(tmp_path)[-1] == "scontrol requeue 7"
