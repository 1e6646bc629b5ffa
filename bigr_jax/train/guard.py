"""What a stage does about a step whose loss, gradient or result is not finite.

The step itself looks, on the device, and keeps the state that it was given (`step.make_step`); the
host is told one step late, as of every metric, and does what `train.<stage>.nonfinite` says:

raise     ends the run
skip      goes on with the next batch; only the count of steps has moved
rollback  goes back to the newest checkpoint, and on with the data after those that led here
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bigr_jax.api import Batch

POLICIES = ("raise", "skip", "rollback")
# Steps skipped in a row, and times that a stage goes back, before the run ends all the same.
LIMIT = 20
_SHOWN = 20


class Course(NamedTuple):
    """How a stage has left the plain course, by which step n sees the n-th batch; in the meta of
    every checkpoint, since going on depends on it.

    offset     step n sees batch n + offset: what a rollback passed over
    rollbacks  how often it went back
    skipped    the steps that changed nothing
    """

    offset: int = 0
    rollbacks: int = 0
    skipped: tuple[int, ...] = ()

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Course:
        """Returns what `meta` holds of it."""
        found = {name: meta[name] for name in cls._fields if name in meta}
        return cls(**{**found, "skipped": tuple(found.get("skipped", ()))})

    def meta(self) -> dict[str, Any]:
        """Returns what differs from the plain course, for JSON."""
        return {name: value for name, value in self._asdict().items() if value}

    def metrics(self) -> dict[str, float]:
        """Returns the counts that are not 0."""
        counts = {"skipped_steps": len(self.skipped), "rollbacks": self.rollbacks}
        return {name: float(count) for name, count in counts.items() if count}

    def skip(self, step: int) -> Course:
        """Returns the course after a step that is skipped."""
        return self._replace(skipped=(*self.skipped, step))

    def back(self, bad: int, to: int) -> Course:
        """Returns the course after going back from step `bad` to the state after step `to`."""
        return self._replace(offset=self.offset + bad - to, rollbacks=self.rollbacks + 1)

    def in_a_row(self) -> int:
        """Returns how many of the steps last skipped follow each other."""
        count = 0
        while count < len(self.skipped) and self.skipped[-1 - count] == self.skipped[-1] - count:
            count += 1
        return count

    def sentence(self) -> str:
        """Returns which steps were skipped, "" for none."""
        if not self.skipped:
            return ""
        listed = ", ".join(map(str, self.skipped[:_SHOWN]))
        more = ", ..." if len(self.skipped) > _SHOWN else ""
        one = len(self.skipped) == 1
        return f"{len(self.skipped)} step{'' if one else 's'} skipped: {listed}{more}"


class Bad(NamedTuple):
    """A step that found something that is not finite: its number, what it saw and measured."""

    step: int
    batch: Batch
    metrics: Mapping[str, float]


class NotFinite(Exception):
    """Training cannot go on after a bad step; the state is as it was before."""

    def __init__(self, bad: Bad) -> None:
        super().__init__(bad.step)
        self.bad = bad
