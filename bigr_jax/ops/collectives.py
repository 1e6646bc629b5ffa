"""The collectives of a compiled program, and the bytes that a device sends in them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from bigr_jax.ops import hlo

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """A collective of a program.

    kind     one of KINDS
    size     bytes of the whole operand on one device: what is gathered, reduced or sent
    group    devices that take part in it together
    times    how often it runs
    op_name  path of the operation that it belongs to
    source   "file.py:12" of that, "" where it is not known
    shape    of the result, as text
    """

    kind: str
    size: int
    group: int
    times: int
    op_name: str
    source: str
    shape: str

    @property
    def where(self) -> str:
        """The end of the path of the operation that it belongs to, and the line of this package."""
        return hlo.where(self.op_name, self.source)

    @property
    def grows(self) -> float:
        """How many times as large as the operand the result is."""
        return {"all-gather": self.group, "reduce-scatter": 1 / self.group}.get(self.kind, 1.0)

    @property
    def moved(self) -> float:
        """Bytes that one device sends in all runs, by the best algorithm on a ring.

        n devices: an all-gather of S bytes on each (n - 1) S, a reduce-scatter and an all-to-all of
        S bytes (n - 1) / n S, an all-reduce twice that, anything else S.
        """
        n = self.group
        share = {
            "all-gather": n - 1,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "all-reduce": 2 * (n - 1) / n,
        }.get(self.kind, 1.0)
        return share * self.size * self.times


def collectives(program: hlo.Program) -> list[Collective]:
    """Returns the collectives of a program; one that starts and ends apart counts once.

    A TPU's goes on in several fusions, beside other work, and is the same by its channel.
    """
    found: list[Collective] = []
    seen: dict[str, int] = {}
    callers = hlo.callers(program)
    for computation, times in hlo.runs(program).items():
        lines = program.computations[computation]
        for line in lines.values():
            kind = line.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # A TPU's reduce-scatter is a fusion of this name around an all-reduce and a slice.
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"
            size = sum(hlo.nbytes(lines[name].shape) for name in line.operands)
            told = line if line.op_name else callers.get(computation, line)
            where = hlo.source(program, told)
            how = (_group(line.rest, program.devices), times, told.op_name, where)
            channel = re.search(r"channel_id=(\d+)", line.rest)
            known = seen.get(channel[1]) if channel else None
            if known is not None:
                if not found[known].op_name:
                    found[known] = found[known]._replace(op_name=how[2], source=how[3])
                continue
            if channel:
                seen[channel[1]] = len(found)
            found.append(Collective(kind, size, *how, line.shape))
    return found


def _group(rest: str, devices: int) -> int:
    if "source_target_pairs=" in rest:
        return 2
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=@?\w*\[('[^\]]*)\][^{}]*\{([^}]*)\}", rest):
        # mesh['a'=2,'b'=4] {'b'}, or a part of an axis: {'b':(1)2}
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
