"""Runs the notebooks of colabs/ and writes them with what they show.

python scripts/notebooks.py [NAME ...]: all, or those that are named, each from its .py file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbclient

COLABS = Path(__file__).resolve().parents[1] / "colabs"


def main(names: list[str]) -> None:
    """Runs notebooks by name; without names, all."""
    for path in [COLABS / f"{name}.py" for name in names] or sorted(COLABS.glob("*.py")):
        print(path.stem, flush=True)
        notebook = jupytext.read(path)
        # Times of execution and the order of streams would differ in every run.
        client = nbclient.NotebookClient(
            notebook,
            timeout=3600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(COLABS)}},
        )
        client.execute()
        # The kernel's own version is of no use to a reader.
        notebook.metadata.pop("language_info", None)
        for number, cell in enumerate(notebook.cells):
            cell.id = f"{path.stem}-{number}"
            for output in cell.get("outputs", ()):
                # Pillow gives every picture twice.
                output.get("data", {}).pop("image/jpeg", None)
        jupytext.write(notebook, path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(sys.argv[1:])
