"""The doctor finds what is there, says what is wrong, and never falls over."""

from __future__ import annotations

from importlib import metadata

import jax
import pytest

from bigr_jax.cli import doctor
from bigr_jax.cli.main import main
from bigr_jax.data import catalogue


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line[2:].split("  ")[0]: line for line in lines}
    assert jax.__version__ in found["jax"]
    assert "(cpu)" in found["devices"]
    assert "GiB" in found["memory"]
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
        return "0.2.7" if name == "optax" else "99.0"

    def broken() -> str:
        raise RuntimeError("no\ndriver")

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_devices", broken)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    listed, said = text.split("\nwrong:\n")
    marked = [line[2:].split("  ")[0] for line in listed.splitlines() if line.startswith("!")]
    assert marked == ["optax", "grain", "devices", "compiled programs"]
    assert "  optax: pip install -U 'optax>=0.2.8'\n" in said
    assert "  grain: pip install -U 'grain>=0.2.18'\n" in said
    assert "  devices: no driver\n" in said
    assert "JAX_COMPILATION_CACHE_DIR" in said


def test_versions_are_compared_as_numbers() -> None:
    assert doctor._numbers("0.10.2") > doctor._numbers("0.9.10")
    assert doctor._numbers("0.12.0.1") > doctor._numbers("0.12.0")
    assert doctor._numbers("1.2.dev3") == (1, 2)
