"""What all tests share: JAX on the processor, compiled programs kept, and simulated devices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# JAX reads these when it is imported, which is after this file.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "BIGR_TEST_CACHE", str(ROOT / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests compile much and run little: LLVM's lower level is three times as fast.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

settings.register_profile("bigr", deadline=None, derandomize=True, max_examples=20, database=None)
settings.load_profile("bigr")

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python() -> RunPython:
    """Returns a function (arguments, devices=1, env={}, cwd=root) that runs a new Python process.

    devices  number of devices that JAX simulates there
    """

    def run(
        arguments: Sequence[str],
        devices: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = ROOT,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
            **(env or {}),
        }
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
