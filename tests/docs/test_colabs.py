"""The notebooks run, and each is the same as its source."""

import json
import re
from pathlib import Path

import pytest

COLABS = Path(__file__).resolve().parents[2] / "colabs"
SOURCES = sorted(COLABS.glob("*.py"))


def cells(text):
    """Returns (kind, source) of the cells of a percent-format script, its header aside."""
    body = re.sub(r"\A# ---\n.*?\n# ---\n", "", text, flags=re.DOTALL)
    found = []
    for part in re.split(r"^# %%", body, flags=re.MULTILINE)[1:]:
        head, _, source = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        if kind == "markdown":
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        found.append((kind, source.strip("\n")))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebook_equals_its_source(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text("utf-8"))
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == cells(path.read_text("utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs(path, run_python, tmp_path):
    env = {"BIGR_SMOKE": "1", "BIGR_WORKDIR": str(tmp_path / "run")}
    done = run_python([str(path)], env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "samples.png").exists()
    assert (tmp_path / "run" / "samples-seed1.png").exists()
