"""What a command readies: compiled programs are kept where the environment says, or in the user's
cache; freed memory stays in a process that computes on the CPU.
"""

from __future__ import annotations

import platform
from typing import Any

import pytest

SHOW = (
    "import jax; from bigr_jax.cli import command; command.prepare();"
    "print(jax.config.jax_compilation_cache_dir);"
    "print(jax.config.jax_persistent_cache_min_compile_time_secs)"
)


@pytest.mark.parametrize("given", [True, False])
def test_where_and_from_when(run_python: Any, tmp_path: Any, given: bool) -> None:
    chosen = {"JAX_COMPILATION_CACHE_DIR": "/chosen"} if given else {}
    chosen |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"} if given else {}
    forget = "import os; [os.environ.pop(k, None) for k in os.environ if k.startswith('JAX_')];"
    forget += f"os.environ.update({chosen!r});"
    done = run_python(["-c", forget + SHOW], env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    default = [f"{tmp_path}/.cache/bigr_jax/jax", "0.5"]
    assert done.stdout.split() == (["/chosen", "3.0"] if given else default)


# Pages that the kernel hands out while arrays of 64 MiB come and go.
FAULTS = """
import resource, numpy as np
from bigr_jax.cli import command
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def turns():
    np.ones(1 << 23)
    before = faults()
    for _ in range(5):
        np.ones(1 << 23)
    return faults() - before
without = turns()
command.prepare()
print(without, turns())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_stays(run_python: Any) -> None:
    done = run_python(["-c", FAULTS])
    assert done.returncode == 0, done.stderr
    without, kept = map(int, done.stdout.split())
    # Huge pages make few faults of much memory.
    assert without >= 5 * 32
    assert kept <= without / 10
