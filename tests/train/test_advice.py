from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bigr_jax import config as configs
from bigr_jax.ops import chips
from bigr_jax.ops.collectives import Collective
from bigr_jax.train import advice, planning
from bigr_jax.train.memory import OutOfMemory
from bigr_jax.train.planning import Figures

GIB = 1 << 30
V5E: Any = SimpleNamespace(device_kind="TPU v5 lite", platform="tpu", memory_stats=lambda: None)
# FLOPs of an image, with nothing repeated, and how much of them each policy repeats and keeps.
COST = 1e12
REPEATED = {"none": 1.0, "dots": 1.1, "full": 4 / 3}
KEPT = {"none": 0.8, "dots": 0.2, "full": 0.05}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Replaces the compiler by figures that are linear in the batch; lists what it was asked."""
    asked = []

    def plan_step(run: Any, name: str, size: int) -> Figures:
        asked.append((run.remat, size))
        return figures(run.remat, size)

    monkeypatch.setattr(planning, "plan_step", plan_step)
    monkeypatch.setattr(advice, "operations", lambda run, name: 10 * REPEATED[run.remat])
    return asked


def figures(remat: str, size: int) -> Figures:
    memory = {"parameters": 4 * GIB, "activations": int(KEPT[remat] * size * GIB)}
    moved = [Collective("collective-permute", GIB, 2, 1, "", "", "")]
    done = int(COST * size * REPEATED[remat])
    bound = chips.bound(V5E, done, COST * size, 8 * GIB, GIB)
    return Figures(memory, 15.75 * GIB, done, int(COST * size), 8 * GIB, moved, 0, [], bound, 0)


def make(overrides: Mapping[str, str]) -> Any:
    mesh = SimpleNamespace(
        shape={"data": 1, "fsdp": 1}, size=1, devices=SimpleNamespace(flat=[V5E])
    )
    # The tokenizer's policy repeats nothing here.
    return SimpleNamespace(mesh=mesh, remat=overrides.get("model.remat", "none"))


def test_policies_are_the_settings_of_that_name() -> None:
    assert advice.policies(configs.load("bigr:smoke")) == {
        "tokenizer.remat": ("false", "true"),
        "model.remat": ("none", "dots", "full"),
    }


def test_the_best_that_fits_comes_first(made: list[tuple[str, int]]) -> None:
    config = configs.load("bigr:smoke", {"train.generator.batch_size": "16"})
    found = advice.search(make, config, "generator", figures("none", 16))
    # The figures of the config's own settings are taken, and only its own policy is tried.
    assert made == [("none", 8), ("dots", 16), ("dots", 8), ("full", 16), ("full", 8)]
    assert all("tokenizer.remat" not in choice.settings for choice in found)
    fits = [choice for choice in found if choice.fits]
    assert found[: len(fits)] == fits
    best = found[0]
    # 4 + 0.8 * 8 GiB; of dots 4 + 0.2 * 32 would repeat a tenth of the arithmetic.
    assert best.settings == {"model.remat": "none", "train.generator.batch_size": "8"}
    assert best.total == pytest.approx((4 + 0.8 * 8) * GIB, rel=1e-6)
    assert best.bound is not None and best.bound.mfu == pytest.approx(1.0)
    dots = next(c for c in found if c.settings["model.remat"] == "dots" and c.batch_size == 32)
    assert dots.fits and not dots.measured
    assert dots.bound is not None and dots.bound.mfu == pytest.approx(1 / 1.1, rel=1e-6)
    # Predicted, it has to leave a little room: 4 + 0.2 * 64 does not.
    assert not next(c for c in found if c.batch_size == 128 and "dots" in str(c.settings)).fits


def test_useful_operations_are_those_without_any_policy(made: Any) -> None:
    assert advice.useful_operations(make, configs.load("bigr:smoke"), "generator") == 10


def test_where_the_configs_own_batch_does_not_fit_smaller_ones_are_compiled(
    made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = planning.plan_step

    def plan_step(run: Any, name: str, size: int) -> Figures:
        if size > 8:
            raise OutOfMemory("no room")
        return compiled(run, name, size)

    monkeypatch.setattr(planning, "plan_step", plan_step)
    whole = 32 * COST
    monkeypatch.setattr(advice, "operations", lambda run, name: whole * REPEATED[run.remat])
    config = configs.load("bigr:smoke", {"train.generator.batch_size": "32"})
    found = advice.search(make, config, "generator", None)
    assert ("none", 8) in made and ("none", 4) in made
    assert found[0].settings == {"model.remat": "none", "train.generator.batch_size": "8"}


def test_no_larger_batch_takes_less(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    compiled = planning.plan_step

    def plan_step(run: Any, name: str, size: int) -> Figures:
        # Short of memory, the compiler repeats more of the larger batch.
        found = compiled(run, name, size)
        short = {**found.memory, "activations": (7 if size > 8 else 8) * GIB}
        return found._replace(memory=short)

    monkeypatch.setattr(planning, "plan_step", plan_step)
    config = configs.load("bigr:smoke", {"train.generator.batch_size": "16"})
    found = advice.search(make, config, "generator", plan_step(make({}), "generator", 16))
    total = {c.batch_size: c.total for c in found if c.settings["model.remat"] == "none"}
    measured = {8: 4 + 8, 16: 4 + 7}
    predicted = {4: 4 + 4, 32: 4 + 14, 64: 4 + 28, 128: 4 + 56}
    assert total == {size: gib * GIB for size, gib in (measured | predicted).items()}
    assert [c.batch_size for c in found if c.fits and c.settings["model.remat"] == "none"] == [
        16, 8, 4,
    ]  # fmt: skip
