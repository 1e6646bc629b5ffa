"""The text of a compiled program: its computations, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once; here everything counts as often as it runs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,<= ]*)\](\{[^{}]*\})?")
NAME = r"%?([\w.\-]+)"
_OPENS = re.compile(rf"^(ENTRY )?{NAME} (?:\(.*\) -> .* )?\{{$")
_DEFINES = re.compile(rf"^\s+(ROOT )?{NAME} = (.*)$")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Instruction(NamedTuple):
    """A line of a computation; `rest` holds its attributes, as text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def op_name(self) -> str:
        """The path of the operation that was traced, "" where it is not known."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]


class Program(NamedTuple):
    """A compiled program for one device.

    computations  by name, each its instructions by name, in order
    entry         name of the one that runs first
    devices       how many run it
    frames        number of a stack frame -> "file.py:12" of the innermost of this package, or of
                  all
    """

    computations: Mapping[str, Computation]
    entry: str
    devices: int
    frames: Mapping[str, str]


def parse(text: str) -> Program:
    """Returns the program that `compiled.as_text()` prints."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    tables: dict[str, list[str]] = {name: [] for name in _TABLES}
    table: list[str] | None = None
    for line in text.splitlines():
        if line in tables:
            table = tables[line]
        elif match := _OPENS.match(line):
            current = computations.setdefault(match[2], {})
            entry, table = match[2] if match[1] else entry, None
        elif match := _DEFINES.match(line):
            current[match[2]] = _instruction(match[2], match[3], bool(match[1]))
        elif table is not None and line:
            table.append(line)
    found = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Program(computations, entry, int(found[1]) if found else 1, _frames(tables))


def runs(program: Program) -> dict[str, int]:
    """Returns how often each computation runs, callers before what they call."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in program.computations:
            return
        seen.add(name)
        for line in program.computations[name].values():
            for callee, _ in callees(program, line):
                visit(callee)
        order.append(name)

    visit(program.entry)
    counts = dict.fromkeys(reversed(order), 0)
    counts[program.entry] = 1
    for name in counts:
        for line in program.computations[name].values():
            for callee, times in callees(program, line, program.computations[name]):
                if callee in counts:
                    counts[callee] += counts[name] * times
    return counts


def callers(program: Program) -> dict[str, Instruction]:
    """Returns {computation: the instruction that calls it}."""
    return {
        callee: line
        for lines in program.computations.values()
        for line in lines.values()
        for callee, _ in callees(program, line)
    }


def fused(program: Program) -> set[str]:
    """Returns the computations that are fused into one kernel: what they make stays inside it."""
    return {name for name, line in callers(program).items() if line.opcode == "fusion"}


def callees(
    program: Program, line: Instruction, caller: Computation | None = None
) -> Iterator[tuple[str, int]]:
    """Yields the computations that an instruction runs, and how often; all branches of a choice."""
    if line.opcode == "while":
        for name in re.findall(rf"body={NAME}", line.rest):
            yield name, _trips(program, caller, line) if caller else 1
    elif line.opcode in ("fusion", "async-start", "call"):
        for name in re.findall(rf"(?:calls|to_apply)={NAME}", line.rest):
            yield name, 1
    elif line.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
        text = listed[1] if listed else " ".join(re.findall(r"_computation=(\S+?)[,\s]", line.rest))
        for name in re.findall(NAME, text):
            yield name, 1


def source(program: Program, line: Instruction) -> str:
    """Returns "file.py:12" of an instruction, "" where it is not known."""
    if found := re.search(r'source_file="([^"]*)" source_line=(\d+)', line.rest):
        return f"{found[1]}:{found[2]}"
    found = re.search(r"stack_frame_id=(\d+)", line.rest)
    return program.frames.get(found[1], "") if found else ""


def where(op_name: str, source: str) -> str:
    """Returns the end of an operation's name, and its place in a source file."""
    place = re.split(r"(?:site-packages|bigr_jax)/", source)[-1]
    return f"{'/'.join(op_name.split('/')[-4:])} {place}".strip()


def nbytes(shape: str) -> int:
    """Returns the bytes of "f32[8,128]{1,0}", or of a tuple of such; without any padding."""
    return sum(math.prod(dims) * bits for bits, dims, _ in arrays(shape)) // 8


def padded_bytes(shape: str) -> int:
    """Returns the bytes that arrays take in a device's memory, with the padding of their tiles."""
    total = 0
    for bits, dims, layout in arrays(shape):
        if "S(" in layout:
            continue
        padded, tile = list(dims), re.search(r":T\(([\d,]+)\)", layout)
        if tile and dims:
            order = [int(axis) for axis in re.findall(r"\d+", layout.partition(":")[0])]
            # The last of a tile's sizes belongs to the axis that is laid out closest together.
            for axis, unit in zip(order, map(int, reversed(tile[1].split(","))), strict=False):
                padded[axis] = -(-dims[axis] // unit) * unit
        total += math.prod(padded) * bits
    return total // 8


@functools.cache
def arrays(shape: str) -> tuple[tuple[int, tuple[int, ...], str], ...]:
    """Returns (bits of an element, sizes, layout) of every array in the text of a type."""
    found = []
    for kind, dims, layout in ARRAY.findall(shape):
        bits = re.match(r"[a-z]+(\d+)", kind)
        width = 8 if kind == "pred" else int(bits[1]) if bits else 0
        sizes = tuple(int(size.strip(" <=")) for size in dims.split(",") if size.strip())
        found.append((width, sizes, layout))
    return tuple(found)


def part_index(line: Instruction) -> int:
    """Returns which part a get-tuple-element takes, -1 for any other instruction."""
    found = re.search(r"index=(\d+)", line.rest) if line.opcode == "get-tuple-element" else None
    return int(found[1]) if found else -1


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, call = text[:end], text[end:].lstrip()
    opcode, _, _ = call.partition("(")
    closing = _closing(call, len(opcode))
    operands = re.findall(r"%([\w.\-]+)", call[len(opcode) : closing])
    if opcode == "parameter":
        operands = []
    return Instruction(name, shape, opcode, tuple(operands), call[len(opcode) :], root)


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis at `start` is closed."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index
    return len(text) - 1


def _frames(tables: Mapping[str, list[str]]) -> dict[str, str]:
    rows = {name: dict(row.split(" ", 1) for row in table) for name, table in tables.items()}

    def field(row: str, name: str) -> str:
        found = re.search(rf"{name}=(\d+)", row)
        return found[1] if found else ""

    places = {}
    for number, row in rows["FileLocations"].items():
        path = rows["FileNames"].get(field(row, "file_name_id"), "").strip('"')
        places[number] = f"{path}:{field(row, 'line')}"
    found = {}
    for number, row in rows["StackFrames"].items():
        first, seen = places.get(field(row, "file_location_id"), ""), set()
        place, parent = first, number
        while "bigr_jax" not in place and parent in rows["StackFrames"] and parent not in seen:
            seen.add(parent)
            place = places.get(field(rows["StackFrames"][parent], "file_location_id"), "")
            parent = field(rows["StackFrames"][parent], "parent_frame_id")
        found[number] = place if "bigr_jax" in place else first
    return found


def _trips(program: Program, caller: Computation, line: Instruction) -> int:
    """Returns how often a loop runs: what XLA says of it, else (bound - start) / step."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest):
        return int(found[1])
    names = {role: re.search(rf"{role}={NAME}", line.rest) for role in ("condition", "body")}
    condition, body = (
        program.computations.get(found[1], {}) if found else {} for found in names.values()
    )
    bound = max(filter(None, map(_constant, condition.values())), default=1)
    parts = [item for item in condition.values() if item.opcode == "get-tuple-element"]
    root = next((item for item in body.values() if item.root), None)
    first = caller.get(line.operands[0]) if line.operands else None
    if len(parts) != 1 or root is None or root.opcode != "tuple" or first is None:
        return bound
    index = part_index(parts[0])

    def begins(index: int) -> int | None:
        known = first.opcode == "tuple" and index < len(first.operands)
        return _constant(caller.get(first.operands[index])) if known else None

    def value(item: Instruction | None) -> int | None:
        if item is not None and item.opcode == "get-tuple-element":
            return begins(part_index(item))
        return _constant(item)

    step = 1
    last = body.get(root.operands[index])
    if last is not None and last.opcode in ("add", "fusion"):
        steps = [
            value(body.get(name))
            for name in last.operands
            if body.get(name) is not None and part_index(body[name]) != index
        ]
        step = next((size for size in steps if size), 1)
    return max(-(-(bound - (begins(index) or 0)) // step), 1)


def _constant(line: Instruction | None) -> int | None:
    if line is None or line.opcode != "constant":
        return None
    found = re.match(r"\((-?\d+)\)", line.rest)
    return int(found[1]) if found else None
