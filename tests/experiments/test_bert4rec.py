"""The published settings build, the validation chooses, and the law is the best of all scorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigr_jax import config, registry
from bigr_jax.data.opening import open_source
from bigr_jax.tasks.next_item import Ranking, measured_scorer
from bigr_jax.train.run import Run

recipe: Any = registry.run_file(registry.describe("bert4rec").path)
VARIANTS = registry.run_file(registry.config_path("bert4rec")).VARIANTS


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("paper")])
def test_published_settings_build_on_a_log_of_ones_own(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("\n".join(f"{n // 9}\t{n * 7 % 31}\t{n}" for n in range(90)), "utf-8")
    changes = {"data.source": f"interactions:{path}"}
    run = Run(config.load(f"bert4rec:{variant}", changes), str(tmp_path / "run"))
    plan, found = run.plan("model"), run.config
    assert plan.total in (400_000, 800_000) and plan.batch_size == 256 and plan.best
    assert found.data.num_classes == 31 + 2
    most = {"paper": 40, "paper_ml20m": 20, "paper_beauty": 30, "paper_steam": 20}[variant]
    assert found.objective.most == most
    params = plan.abstract.variables["params"]
    assert params["position"].shape == (found.data.size, 64)


def test_of_all_scorers_the_law_ranks_best() -> None:
    section = {"source": "interactions:made", "size": 20, "channels": 0}
    source: Any = open_source(section, "test")
    asked, found = Ranking((10,)), dict[str, float]()
    for name, make in recipe.COUNTED.items():
        metrics = measured_scorer(make(source), source, asked)
        kept = recipe.named({"made": metrics})
        assert kept["made: hits within/10"] == kept["made: hr@10"] == metrics["hr@10"]
        found[name] = metrics["ndcg@10"]
    assert found["popularity"] + 0.03 < found["Markov"] < found["best guess"] / 1.5
