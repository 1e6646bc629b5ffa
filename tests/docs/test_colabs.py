"""The notebooks run in a real kernel, each is the same as its source, and shows figures."""

import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks
from nbmake.nb_run import NotebookRun

COLABS = Path(__file__).resolve().parents[2] / "colabs"
NOTEBOOKS = sorted(COLABS.glob("*.ipynb"))
NAMES = {
    "editing", "experiment", "mixers", "pod", "quickstart", "routes", "tokenizer",
}  # fmt: skip
# Of machines: folders, and the colours of terminals and bars of progress, which are no text.
NOT_TO_SHOW = re.compile(r"(?<![\w.])/(work|tmp|root|home|Users)/|\x1b|\r")
LARGEST = 400_000

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    """Returns all that the cells of a notebook have put out."""
    return [out for cell in notebook.cells for out in cell.get("outputs", ())]


def pictures(notebook):
    """Returns the outputs that are pictures."""
    return [out for out in outputs(notebook) if "image/png" in out.get("data", {})]


def test_the_notebooks_are_all_there():
    assert {path.stem for path in NOTEBOOKS} == NAMES
    assert {path.stem for path in COLABS.glob("*.py")} == NAMES


@every_notebook
def test_notebook_equals_its_source(path):
    compare_notebooks(jupytext.read(path), jupytext.read(path.with_suffix(".py")), fmt="py:percent")


@every_notebook
def test_notebook_shows_figures_and_nothing_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert pictures(notebook)
    assert not [out for out in outputs(notebook) if out.output_type == "error"]
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    texts = [
        str(out.get("text", out.get("data", {}).get("text/plain"))) for out in outputs(notebook)
    ]
    assert not [text for text in texts if NOT_TO_SHOW.search(text)]
    assert path.stat().st_size < LARGEST


# 90 s of processor time in all, of which half is the imports of seven kernels.
@every_notebook
def test_notebook_runs(path, smoke, tmp_path, monkeypatch):
    # What three of them would train.
    shutil.copytree(smoke, tmp_path / "bigr-smoke")
    monkeypatch.setenv("BIGR_SMOKE", "1")
    monkeypatch.setenv("BIGR_WORKDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    result = NotebookRun(path, 300, kernel="python3").execute()
    assert result.error is None, result.error.trace
    assert pictures(result.nb)
