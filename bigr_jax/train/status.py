"""One line that says how a stage stands: rewritten in place on a terminal, a few lines in a log."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

import jax

from bigr_jax.ops import flops

_LOG_SECONDS = 10.0
_LOG_LINES = 20
_TERMINAL_SECONDS = 0.1
# Share of the newest step in the averages shown.
_NEWEST = 0.05


class Status:
    """Progress of one stage on stderr: step, ETA, loss, examples per second, MFU, wait for data.

    stage   its name
    total   its last step
    stream  where to write; on processes other than 0 nothing is
    clock   () -> seconds
    """

    def __init__(
        self,
        stage: str,
        total: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._stage, self._total, self._clock = stage, total, clock
        self._stream = stream if stream is not None else sys.stderr
        self._silent = jax.process_index() != 0
        self._terminal = self._stream.isatty()
        self._line = ""
        self._shown_at = -math.inf
        self._shown_step = -math.inf
        self._batch_size = 0
        self._flops: float | None = None
        self._peak: float | None = None
        self._step = self._first = 0
        self._at: float | None = None
        self._seconds: float | None = None
        self._waited = 0.0

    def compiling(self, what: str) -> None:
        """Says what is being compiled, before the silence that this is."""
        self._transient(f"{self._stage}: compiling {what} (first step), this may take a while ...")

    def compiled(self, seconds: float) -> None:
        """Says how long that took."""
        self._erase()
        self._line = ""
        self.message(f"{self._stage}: compiled in {seconds:.1f} s")

    def start(
        self, step: int, batch_size: int, flops_per_step: float | None, device: jax.Device
    ) -> None:
        """Begins to measure speed.

        step            steps done before
        batch_size      examples in a step, over all devices
        flops_per_step  of the share of one device; None: MFU is not shown
        device          one of the devices
        """
        self._step = self._first = step
        self._batch_size, self._flops = batch_size, flops_per_step
        self._peak = flops.peak_flops(device) if flops_per_step else None
        self._at = self._clock()

    def step(self, step: int, loss: float, waited: float) -> None:
        """Shows the line after a step, if it is time to.

        loss    of this step
        waited  seconds that the step waited for its data
        """
        now = self._clock()
        if self._at is not None and step > self._step:
            seconds = (now - self._at) / (step - self._step)
            before = seconds if self._seconds is None else self._seconds
            newest = max(_NEWEST, 1.0 / (step - self._first))
            self._seconds = before + newest * (seconds - before)
            self._waited += newest * (waited - self._waited)
        self._step, self._at = step, now
        if self._is_due(now, step):
            self._shown_at, self._shown_step = now, step
            self._transient(self._text(step, loss))

    def message(self, text: str) -> None:
        """Prints a line that stays, above the status line.

        The time since the last step was spent on what the line tells, an evaluation say, and does
        not count in the speed of training.
        """
        self._at = None
        if self._silent:
            return
        self._erase()
        self._stream.write(text + "\n")
        self._redraw()

    def close(self) -> None:
        """Ends the status line; what it showed last stays."""
        if self._terminal and self._line and not self._silent:
            self._stream.write("\n")
            self._stream.flush()
        self._line = ""

    def _is_due(self, now: float, step: int) -> bool:
        if step >= self._total:
            return True
        if self._terminal:
            return now - self._shown_at >= _TERMINAL_SECONDS
        spaced = step - self._shown_step >= (self._total - self._first) / (_LOG_LINES - 1)
        return spaced and now - self._shown_at >= _LOG_SECONDS

    def _text(self, step: int, loss: float) -> str:
        parts = [f"{self._stage}  {step}/{self._total} {step / max(self._total, 1):4.0%}"]
        seconds = self._seconds
        if seconds is not None and step < self._total:
            parts.append(f"ETA {_duration((self._total - step) * seconds)}")
        parts.append(f"loss {loss:.4g}")
        if seconds:
            parts.append(f"{_rounded(self._batch_size / seconds)} examples/s")
            if self._flops and self._peak:
                parts.append(f"MFU {self._flops / seconds / self._peak:.1%}")
            parts.append(f"data wait {min(self._waited / seconds, 1.0):.1%}")
        return "  ".join(parts)

    def _transient(self, text: str) -> None:
        if self._silent:
            return
        if self._terminal:
            self._erase()
            self._line = text
            self._redraw()
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def _erase(self) -> None:
        if self._terminal and self._line and not self._silent:
            self._stream.write("\r\x1b[K")

    def _redraw(self) -> None:
        if self._terminal and self._line:
            # A line that wraps could not be erased.
            self._stream.write(self._line[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
