"""The doctor finds what is there, says what is wrong, and never falls over."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import jax
import pytest

from bigr_jax.cli import doctor
from bigr_jax.cli.main import main
from bigr_jax.data import catalogue


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    found = {line[2:].split("  ")[0]: line for line in lines}
    assert jax.__version__ in found["jax"]
    assert "(cpu)" in found["devices"]
    assert "GiB" in found["memory"]
    assert "compiled and run in" in found["first program"]
    assert "JAX_PLATFORMS=cpu" in out
    for name in ("python", "flax", "libtpu", "tensorflow", "tensorboardX", "wandb", "processors"):
        assert name in found
    for name in catalogue.CARDS:
        assert f"data {name}" in found


def test_what_is_wrong_is_marked_and_said_with_its_cure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "grain":
            raise metadata.PackageNotFoundError
        return {"optax": "0.2.7", "jax": "0.10.2"}.get(name, "99.0")

    def broken() -> str:
        raise RuntimeError("no\ndriver")

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_devices", broken)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    monkeypatch.setattr(doctor, "_compile", broken)
    assert main(["doctor"]) == 2
    text, said_last = capsys.readouterr()
    listed, said = text.split("\nwrong:\n")
    marked = [line[2:].split("  ")[0] for line in listed.splitlines() if line.startswith("!")]
    folders = ["compiled programs", "work directories"]
    assert marked == ["optax", "grain", "jaxlib", "devices", *folders]
    assert said_last == f"bigr: the doctor found wrong: {', '.join(marked)}\n"
    assert "  optax: pip install -U 'optax>=0.2.8'\n" in said
    assert "  grain: pip install -U 'grain>=0.2.18'\n" in said
    assert "  devices: no driver\n" in said
    assert "JAX_COMPILATION_CACHE_DIR" in said


def test_versions_are_compared_as_numbers() -> None:
    assert doctor._numbers("0.10.2") > doctor._numbers("0.9.10")
    assert doctor._numbers("0.12.0.1") > doctor._numbers("0.12.0")
    assert doctor._numbers("1.2.dev3") == (1, 2)


def test_the_versions_are_those_that_are_tested() -> None:
    folder = Path(__file__).resolve().parents[2] / "requirements"
    for place, file in enumerate(("min.txt", "latest.txt")):
        pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (folder / file).read_text(), re.MULTILINE))
        pinned = {name.replace("_", "-"): version for name, version in pinned.items()}
        assert {name: pinned[name] for name in doctor.TESTED} == {
            name: versions[place] for name, versions in doctor.TESTED.items()
        }


def test_what_is_newer_than_tested_is_said_and_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "99.0")
    lines = {line.name: line for line in doctor.packages()}
    assert lines["jax"].found == "99.0 (newer than tested: 0.12.0.1)"
    assert not any(line.wrong for line in lines.values())


def test_another_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    assert "Python 3.11 to 3.12 is needed" in next(
        line.wrong for line in doctor.packages() if line.name == "python"
    )
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 0))
    line = next(line for line in doctor.packages() if line.name == "python")
    assert "newer than tested" in line.found
    assert not line.wrong


def test_a_chip_that_is_not_used_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def there(pattern: str) -> list[str]:
        return ["/dev/accel0"] if "accel" in pattern else []

    monkeypatch.setattr(doctor.glob, "glob", there)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "unset JAX_PLATFORMS, which is 'cpu'" in doctor._unused("1 x cpu (cpu)")
    monkeypatch.delenv("JAX_PLATFORMS")
    assert doctor._unused("1 x cpu (cpu)") == (
        "/dev/accel0 is here, and JAX uses the CPU alone: pip install -U 'bigr_jax[tpu]'"
    )
    assert doctor._unused("4 x TPU v5 lite (tpu)") == ""


def test_a_tpu_that_another_process_has() -> None:
    wrong = "The TPU is already in use by process with pid 4711."
    assert doctor._in_use(wrong).startswith(wrong + "; end that process")
    assert doctor._in_use("no driver") == "no driver"


def test_a_full_disk_and_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 80)
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1 << 80)
    assert "make room" in doctor._folder("work directories", "none/there", "").wrong
    assert "end what else runs" in doctor._guarded("memory", doctor._memory).wrong
