"""What `bigr plan` prints and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from bigr_jax.ops.collectives import Collective
from bigr_jax.train.advice import Choice
from bigr_jax.train.overview import in_bytes
from bigr_jax.train.planning import Figures

# How many arrays, and collectives of a kind, are named.
NAMED = 3


def program(title: str, found: Figures, mesh: Mesh) -> str:
    """Returns what a compiled program takes of a device, as lines."""
    lines = [title, *_memory(found), "", *_arithmetic(found, mesh), "", *_links(found)]
    return "\n".join([*lines, *_bound(found)])


def choices(found: Sequence[Choice]) -> str:
    """Returns the table of remat policies and batch sizes, the best first."""
    rows = [
        (
            "  ".join(f"{key}={value}" for key, value in choice.settings.items()),
            in_bytes(choice.total),
            {True: "fits", False: "too large", None: "?"}[choice.fits],
            f"{choice.bound.mfu:.0%}" if choice.bound else "?",
            choice.bound.limit if choice.bound else "",
            "" if choice.measured else "predicted",
        )
        for choice in found
    ]
    head = ("settings", "bytes per chip", "", "MFU at most", "waits for", "")
    return _columns([head, *rows])


def saved_by_fsdp(found: Figures, mesh: Mesh) -> str:
    """Returns what parameters in parts would save on a mesh that holds them whole, "" elsewhere."""
    whole = sum(found.memory.get(name, 0) for name in ("parameters", "optimizer", "average"))
    count = min(mesh.size, 8)
    if mesh.shape["fsdp"] > 1 or count < 2:
        return ""
    return (
        f"every chip holds all {in_bytes(whole)} of parameters, optimizer and average; "
        f"mesh.fsdp={count} would leave {in_bytes(whole / count)}"
    )


def record(found: Figures) -> dict[str, Any]:
    """Returns the figures of a program, for JSON."""
    bound = found.bound
    return {
        "memory": dict(found.memory),
        "total": found.total,
        "limit": found.limit,
        "fits": found.fits,
        "operations": found.operations,
        "useful": found.useful,
        "traffic": found.traffic,
        "collectives": by_kind(found.collectives),
        "moved": found.moved,
        "minimum": found.minimum,
        "bound": None if bound is None else {**bound._asdict(), "mfu": bound.mfu},
        "arrays": [item._asdict() for item in found.arrays],
        "seconds": round(found.seconds, 1),
    }


def by_kind(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Returns {kind: {"times": how often in a run, "moved": bytes that one device sends}}."""
    kinds: dict[str, dict[str, float]] = {}
    for item in found:
        entry = kinds.setdefault(item.kind, {"times": 0, "moved": 0.0})
        entry["times"] += item.times
        entry["moved"] += item.moved
    return dict(sorted(kinds.items(), key=lambda pair: -pair[1]["moved"]))


def _memory(found: Figures) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (f"  {name}", in_bytes(size)) for name, size in found.memory.items()
    ]
    verdict = ""
    if found.limit is not None:
        spare = found.limit - found.total
        word = "fits," if spare >= 0 else "does not fit,"
        end = "to spare" if spare >= 0 else "too much"
        verdict = f"of {in_bytes(found.limit)}: {word} {in_bytes(abs(spare))} {end}"
    rows.append(("  total", in_bytes(found.total), verdict))
    lines = _columns(rows).splitlines()
    named = [item for item in found.arrays if item.size][:NAMED]
    if named:
        lines.append("  the largest that it makes:")
        lines += [f"    {in_bytes(a.size)}  {_first(a.shape)}  {a.where}" for a in named]
    return lines


def _arithmetic(found: Figures, mesh: Mesh) -> list[str]:
    each = found.operations / mesh.size
    repeated = 1 - found.useful / found.operations if found.operations else 0
    again = f", {repeated:.0%} of it repeated by remat" if repeated > 0.005 else ""
    return [
        f"  {found.operations / 1e12:,.4g} TFLOP, {each / 1e12:,.4g} on a chip{again}",
        f"  {in_bytes(found.traffic)} to and from the memory of a chip, "
        f"{each / max(found.traffic, 1):,.0f} FLOP per byte",
    ]


def _links(found: Figures) -> list[str]:
    if not found.collectives:
        return ["  nothing is sent between chips"]
    rows: list[tuple[str, ...]] = [
        (f"  {kind}", f"{entry['times']:,.0f} times", in_bytes(entry["moved"]))
        for kind, entry in by_kind(found.collectives).items()
    ]
    ratio = ""
    if found.minimum:
        ratio = f"{found.moved / found.minimum:.2f} of the least for parameters and gradients, "
        ratio += in_bytes(found.minimum)
    rows.append(("  sent by a chip", "", in_bytes(found.moved), ratio))
    lines = _columns(rows).splitlines()
    most = sorted(found.collectives, key=lambda item: -item.moved)[:NAMED]
    lines.append("  the most is sent by:")
    lines += [
        f"    {in_bytes(item.moved)}  {item.times} x {item.kind} over {item.group} of "
        f"{_first(item.shape)}  {item.where}"
        for item in most
    ]
    return lines


def _bound(found: Figures) -> list[str]:
    if found.bound is None:
        return []
    bound = found.bound
    return [
        "",
        f"  at least {_seconds(bound.seconds)}: arithmetic {_seconds(bound.arithmetic)}, memory "
        f"{_seconds(bound.memory)}, links {_seconds(bound.links)}; MFU at most {bound.mfu:.0%}",
    ]


def _first(shape: str) -> str:
    """Returns an array's shape without its layout; of several arrays the first."""
    first = shape.lstrip("(").partition("{")[0]
    return f"{first} and others" if shape.startswith("(") else first


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    count = max(map(len, rows))
    full = [(*row, *[""] * (count - len(row))) for row in rows]
    widths = [max(len(row[column]) for row in full) for column in range(count)]
    lines = []
    for row in full:
        cells = [
            cell.ljust(width) if column in (0, count - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def settings(mesh: Mesh) -> str:
    """Returns a mesh as "data=32, fsdp=8"; axes of one device are left out."""
    sizes = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    return ", ".join(sizes) or "one device"


def machine(mesh: Mesh, name: str) -> Mapping[str, Any]:
    """Returns what was planned for, for JSON."""
    return {
        "name": name,
        "devices": mesh.size,
        "kind": mesh.devices.flat[0].device_kind,
        "mesh": dict(mesh.shape),
    }
