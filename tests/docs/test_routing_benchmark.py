"""The benchmark of routed attention runs on a small map, where its forms are equal."""

from __future__ import annotations

from typing import Any


def test_a_small_map_is_timed_in_all_forms(run_python: Any) -> None:
    done = run_python(["benchmarks/routing.py", "--quick"])
    assert done.returncode == 0, done.stderr
    names = ["dense of JAX", "dense", "gather", "walk", "auto"]
    assert done.stdout.count(f"| map | fewer products | {' | '.join(names)} |") == 2
    row = [line for line in done.stdout.splitlines() if line.startswith("| 14 x 14, S=7, k=4 |")]
    assert len(row) == 2 and all("1.00x" in line for line in row)
    assert done.stdout.count("not measured: ") == 3
