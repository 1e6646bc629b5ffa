"""What a compiled program reads, writes and keeps in the memory of a device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from bigr_jax.ops import hlo
from bigr_jax.ops.collectives import KINDS, collectives

# They move nothing: they name a part of what another made, or another computation.
_SILENT = frozenset(
    """parameter constant tuple get-tuple-element bitcast while conditional call after-all iota
    partition-id replica-id opt-barrier domain async-start async-update async-done""".split()  # noqa: SIM905
)

# What passes on what it reads, as far as the question goes who made a value.
_PASSING = frozenset(("bitcast", "copy", "copy-start", "copy-done", "opt-barrier"))


class Kept(NamedTuple):
    """An array that a program makes; `size` in bytes, with the padding of its tiles."""

    shape: str
    size: int
    op_name: str
    source: str

    @property
    def where(self) -> str:
        """The end of the path of the operation that made it, and the line of this package."""
        return hlo.where(self.op_name, self.source)


def traffic(program: hlo.Program) -> int:
    """Returns the bytes that one device reads from and writes to its memory in a run.

    Of what is sliced or updated in place, the slice counts; what the compiler has placed in the
    memory of the core (space 1 of a TPU) does not. A collective reads its operand and writes its
    result, however many fusions it goes on beside.
    """
    fused = hlo.fused(program)
    sent = sum((1 + item.grows) * item.size * item.times for item in collectives(program))
    return round(sent) + sum(
        times * sum(_moved(program, lines, line) for line in lines.values())
        for name, times in hlo.runs(program).items()
        if name not in fused
        for lines in (program.computations[name],)
    )


def kept(program: hlo.Program) -> list[Kept]:
    """Returns what the forward pass keeps for the backward pass, the largest first.

    Both are told apart by the names that `jax.grad` gives to what it traces. Where both are in the
    body of a loop, as with accumulated gradients, it is what one iteration keeps.
    """
    fused = hlo.fused(program)
    best: list[Kept] = []
    for name in hlo.runs(program):
        if name not in fused:
            found = _kept_in(program, program.computations[name])
            if sum(item.size for item in found) > sum(item.size for item in best):
                best = found
    return sorted(best, key=lambda item: -item.size)


def largest(program: hlo.Program, count: int) -> list[Kept]:
    """Returns the largest arrays that are made anywhere but within a fusion, the largest first; of
    those of one shape, the first.
    """
    fused = hlo.fused(program)
    found: dict[str, Kept] = {}
    for name in hlo.runs(program):
        for line in program.computations[name].values() if name not in fused else ():
            if line.opcode in _SILENT or line.opcode in _PASSING:
                continue
            for shape, maker in _parts(program, line):
                size, where = hlo.padded_bytes(shape), hlo.source(program, maker)
                item = Kept(shape, size, maker.op_name, where)
                found.setdefault(shape.partition("{")[0], item)
    return sorted(found.values(), key=lambda item: -item.size)[:count]


def _parts(program: hlo.Program, line: hlo.Instruction) -> Iterator[tuple[str, hlo.Instruction]]:
    """Yields each array of a result, and who makes it; those that a fusion passes on are none."""
    called = [name for name, _ in hlo.callees(program, line)]
    lines = program.computations.get(called[0], {}) if line.opcode == "fusion" and called else {}
    root = next((item for item in lines.values() if item.root), None)
    if root is not None and root.opcode == "tuple":
        for name in root.operands:
            if lines[name].opcode != "parameter":
                yield lines[name].shape, lines[name] if lines[name].op_name else line
        return
    for match in hlo.ARRAY.finditer(line.shape):
        yield match[0], line


def _moved(program: hlo.Program, lines: hlo.Computation, line: hlo.Instruction) -> int:
    """Returns the bytes that one run of an instruction reads and writes."""
    if line.opcode in _SILENT or line.opcode.endswith("-done") or _is_sent(line):
        return 0
    shapes = [lines[name].shape for name in line.operands if name in lines]
    if line.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * hlo.padded_bytes(line.shape)
    if line.opcode in ("slice-start", "dynamic-slice-start"):
        return 2 * hlo.padded_bytes([match[0] for match in hlo.ARRAY.finditer(line.shape)][1])
    if line.opcode == "dynamic-update-slice":
        return 2 * hlo.padded_bytes(shapes[1])
    called = [name for name, _ in hlo.callees(program, line)]
    if line.opcode != "fusion" or not called:
        written = 0 if line.opcode.endswith("-start") else hlo.padded_bytes(line.shape)
        return sum(map(hlo.padded_bytes, shapes)) * (1 + line.opcode.endswith("-start")) + written
    return _moved_by_fusion(program, program.computations[called[0]])


def _moved_by_fusion(program: hlo.Program, lines: hlo.Computation) -> int:
    read = sum(_read(program, lines, x) for x in lines.values() if x.opcode == "parameter")
    root = next((line for line in lines.values() if line.root), None)
    if root is None:
        return read
    parts = [lines[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return read + sum(_written(lines, part) for part in parts)


def _read(program: hlo.Program, lines: hlo.Computation, value: hlo.Instruction) -> int:
    """Returns the bytes of a fusion's argument that the fusion reads."""
    whole, total = hlo.padded_bytes(value.shape), 0
    for user in lines.values():
        for at in (place for place, name in enumerate(user.operands) if name == value.name):
            first = at == 0
            if user.opcode == "bitcast":
                total += _read(program, lines, user)
            elif user.opcode in ("dynamic-slice", "gather", "slice") and first:
                total += hlo.padded_bytes(user.shape)
            elif user.opcode == "fusion":
                inner = program.computations[next(name for name, _ in hlo.callees(program, user))]
                argument = f"({at})"
                same = (x for x in inner.values() if x.opcode == "parameter")
                taken = next((x for x in same if x.rest.startswith(argument)), None)
                total += _read(program, inner, taken) if taken else whole
            elif not ((user.opcode == "dynamic-update-slice" and first) or _passes_on(user)):
                total += whole
    return min(total, whole)


def _passes_on(line: hlo.Instruction) -> bool:
    return line.opcode == "tuple" or _is_sent(line)


def _written(lines: hlo.Computation, part: hlo.Instruction) -> int:
    """Returns the bytes of a fusion's result that it writes itself, not what it passes on."""
    while part.opcode == "bitcast":
        part = lines[part.operands[0]]
    if part.opcode == "parameter" or _is_sent(part):
        return 0
    if part.opcode == "dynamic-update-slice":
        return hlo.padded_bytes(lines[part.operands[1]].shape)
    return hlo.padded_bytes(part.shape)


def _is_sent(line: hlo.Instruction) -> bool:
    return line.opcode.removesuffix("-start") in KINDS or "AsyncCollective" in line.rest


def _kept_in(program: hlo.Program, lines: hlo.Computation) -> list[Kept]:
    found: dict[tuple[str, int], Kept] = {}
    for line in lines.values():
        if "transpose(" not in line.op_name:
            continue
        for name in line.operands:
            for maker, index in _makers(lines, name):
                made = lines[maker]
                if "jvp(" not in made.op_name or "transpose(" in made.op_name:
                    continue
                if made.opcode in ("parameter", "constant", "iota", "broadcast"):
                    continue
                arrays = [match[0] for match in hlo.ARRAY.finditer(made.shape)]
                shape = arrays[index] if index < len(arrays) else made.shape
                item = Kept(shape, hlo.padded_bytes(shape), made.op_name, hlo.source(program, made))
                found[maker, index] = item
    return list(found.values())


def _makers(lines: hlo.Computation, name: str, index: int = 0) -> Iterator[tuple[str, int]]:
    """Yields who made a value, and which part of its result it is; all parts of a tuple."""
    while name in lines:
        line = lines[name]
        if line.opcode == "get-tuple-element":
            part = re.search(r"index=(\d+)", line.rest)
            index, name = int(part[1]) if part else 0, line.operands[0]
            if lines[name].opcode == "tuple":
                name, index = lines[name].operands[index], 0
        elif line.opcode == "tuple":
            for operand in line.operands:
                yield from _makers(lines, operand)
            return
        elif line.opcode in _PASSING and line.operands:
            name = line.operands[0]
        else:
            yield name, index
            return
