"""The benchmark of what surviving costs runs at a tiny size; no time is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigr_jax import registry
from bigr_jax.train import manifest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--width=8", "--depth=2", "--rows=4", "--steps=2", "--repeats=1"]


@pytest.fixture(scope="module")
def resilience():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield registry.run_file(FOLDER / "resilience.py")


def test_every_part_compares_two_forms(resilience, capsys):
    digest = manifest._digest
    assert resilience.main(SMALL) == 0
    assert manifest._digest is digest
    printed = capsys.readouterr().out
    assert "equal: loss and norm of the gradient" in printed
    for forms in (("plain", "guarded"), ("none", "every step"), ("without", "with the manifest")):
        assert all(f"| {form} |" in printed for form in forms)
        assert f"{forms[1]} takes " in printed


def test_another_loss_is_refused(resilience, capsys, monkeypatch):
    plain = resilience.plain

    def other(state, *inputs):
        after, metrics = plain(state, *inputs)
        return after, {**metrics, "loss": metrics["loss"] + 1}

    monkeypatch.setattr(resilience, "plain", other)
    assert resilience.main([*SMALL, "--parts=guard"]) == 1
    assert "UNEQUAL" in capsys.readouterr().out
