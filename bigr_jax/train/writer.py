"""Metrics of a run: a line of JSON per row in metrics.jsonl; TensorBoard and wandb if asked for.

A row is {"stage": ..., "step": ..., name: number, ...}; a number that is not finite is null, since
JSON has none. Rows are appended and synced one by one, so that a kill costs at most the last one.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import jax

from bigr_jax import files
from bigr_jax.errors import UserError

NAME = "metrics.jsonl"


class Metrics:
    """Writes the metrics of all stages of a work directory; process 0 alone does.

    directory    the work directory; its metrics.jsonl is continued, less a last line cut by a kill
    tensorboard  also event files, under tensorboard/<stage>
    wandb        also to wandb, one run with the stages side by side, resumed by the id in wandb_id

    Raises UserError where a writer is asked for that is not installed.
    """

    def __init__(
        self, directory: str | os.PathLike[str], tensorboard: bool = False, wandb: bool = False
    ) -> None:
        self._directory = os.fspath(directory)
        self._path = os.path.join(self._directory, NAME)
        self._tensorboard: Any = None
        self._boards: dict[str, Any] = {}
        self._first_step: dict[str, int] = {}
        self._wandb: Any = None
        self._silent = jax.process_index() != 0
        if self._silent:
            return
        os.makedirs(self._directory, exist_ok=True)
        if tensorboard:
            self._tensorboard = _imported("tensorboardX", "logging.tensorboard")
        if wandb:
            self._wandb = _wandb_run(_imported("wandb", "logging.wandb"), self._directory)
        self._keep(lambda row: True)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def rewind(self, stage: str, step: int) -> None:
        """Drops the rows of a stage after `step`, from which it goes on; -1 drops all its rows."""
        if self._silent:
            return
        self._first_step[stage] = step + 1
        self._keep(lambda row: row["stage"] != stage or row["step"] <= step)

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends a row; `values` are numbers or scalar arrays."""
        if self._silent:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: n if math.isfinite(n) else None for name, n in numbers.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **finite}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._tensorboard is not None:
            board = self._board(stage)
            for name, number in numbers.items():
                board.add_scalar(name, number, step)
        if self._wandb is not None:
            # Stages count their steps each for itself; wandb's own count only ever rises.
            self._wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            shown = {f"{stage}/{name}": number for name, number in numbers.items()}
            self._wandb.log({f"{stage}/step": step, **shown})

    def close(self) -> None:
        """Ends TensorBoard's files and wandb's run."""
        for board in self._boards.values():
            board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrites the file, in one piece, with the rows that are wanted, if that changes it."""
        if not os.path.exists(self._path):
            return
        with open(self._path, encoding="utf-8", errors="replace") as file:
            before = file.read()
        rows = _rows(before, self._path)
        after = "".join(line + "\n" for line, row in rows if wanted(row))
        if after != before:
            files.write_text(self._path, after)

    def _board(self, stage: str) -> Any:
        if stage not in self._boards:
            self._boards[stage] = self._tensorboard.SummaryWriter(
                os.path.join(self._directory, "tensorboard", stage),
                purge_step=self._first_step.get(stage),
                # The name has only seconds: a run that follows at once would overwrite this one.
                filename_suffix=f".{uuid.uuid4().hex[:8]}",
            )
        return self._boards[stage]


def read(path: str | os.PathLike[str], stage: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl (or of the one in a work directory), of one stage or all.

    null becomes nan; a last line cut by a kill is left out. Raises UserError for a file that is
    missing or holds something else.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        name = os.path.join(name, NAME)
    if not os.path.exists(name):
        raise UserError(f"{name} does not exist: nothing was trained there")
    with open(name, encoding="utf-8", errors="replace") as file:
        rows = [row for _, row in _rows(file.read(), name)]
    return [
        {key: math.nan if value is None else value for key, value in row.items()}
        for row in rows
        if stage in (None, row["stage"])
    ]


def _rows(text: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    lines = text.split("\n")
    # What follows the last line end is a row that was being written when the process died.
    found = []
    for number, line in enumerate(lines[:-1], 1):
        row = _parsed(line)
        if row is None:
            raise UserError(f"{path} line {number} is not a row of metrics: {line[:60]!r}")
        found.append((line, row))
    return found


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        return row if isinstance(row["stage"], str) and isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None


def _imported(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{key}=True, but {package} is not installed; run: pip install {package}"
        ) from None


def _wandb_run(wandb: Any, directory: str) -> Any:
    path = os.path.join(directory, "wandb_id")
    if not os.path.exists(path):
        files.write_text(path, uuid.uuid4().hex[:8])
    with open(path, encoding="utf-8") as file:
        return wandb.init(project="bigr_jax", dir=directory, id=file.read(), resume="allow")
