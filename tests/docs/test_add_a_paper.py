"""The paper that docs/add_a_paper.md walks through: its files are those of `bigr new`, its own test
passes, and it keeps what every experiment keeps of its form.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from bigr_jax import config, registry
from bigr_jax.cli import new
from bigr_jax.train.run import Run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "add_a_paper.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the steps of the page."""
    into = tmp_path_factory.mktemp("my_papers")
    texts = new.written("gce", into)
    new.write(texts)
    files = re.findall(r'^```python title="(.+?)"\n(.*?)^```', PAGE, re.M | re.S)
    assert {into / path for path, _ in files} == texts.keys()
    for path, text in files:
        (into / path).write_text(text, "utf-8")
    return into


def test_what_the_page_tests_is_true(folder: Path) -> None:
    tests: Any = registry.run_file(folder / "tests" / "experiments" / "test_gce.py")
    names = [name for name in vars(tests) if name.startswith("test_")]
    assert len(names) == 3
    for name in names:
        function = getattr(tests, name)
        values = [mark.args[1] for mark in getattr(function, "pytestmark", ())]
        for given in [(value,) for value in values[0]] if values else [()]:
            function(*given)


@pytest.mark.parametrize("variant", ["smoke", "small"])
def test_the_experiment_is_whole(variant: str, folder: Path) -> None:
    settings = config.load(f"{folder}/configs/gce.py:{variant}")
    card = registry.load(settings.slug)
    assert card.command == "bigr prove --config=configs/gce.py:small"
    # Shapes, optimizer and data of the stage; and no setting that nothing reads.
    run = Run(settings, os.devnull)
    assert list(run.stage_names(None)) == ["classifier"]
    assert len(Path(card.path).read_text("utf-8").splitlines()) <= 200


def test_the_page_shows_the_claims_that_the_study_states(folder: Path) -> None:
    study = (folder / "experiments" / "gce.py").read_text("utf-8")
    for other in ("cross-entropy", "absolute error"):
        assert other in study
        assert re.search(
            rf"^(holds|does not hold) +GCE reads digits better than {other}$", PAGE, re.M
        )
