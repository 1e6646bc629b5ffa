"""What all tests share: JAX on the processor, compiled programs kept, and simulated devices."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# JAX reads these when it is imported, which is after this file.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "BIGR_TEST_CACHE", str(ROOT / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests compile much and run little: LLVM's lowest level, one part at a time since the workers fill
# the cores, and XLA's older emitters of loops halve the time. Later releases refuse the last flag.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# What a slow machine says of itself is no part of what is tested.
os.environ.setdefault("BIGR_PROGRESS", "1e6")

settings.register_profile("bigr", deadline=None, derandomize=True, max_examples=20, database=None)
settings.load_profile("bigr")

TINY = str(ROOT / "tests" / "tiny.py")

# The files that take longest, longest first.
LONGEST = (
    "test_several_hosts.py",
    "test_every_experiment.py",
    "test_tpu_smoke.py",
    "test_colabs.py",
    "test_cli_train.py",
    "test_hydra.py",
    "test_devices.py",
    "test_kill.py",
    "test_cli_new.py",
    "test_cli_convert.py",
    "test_encoder.py",
    "test_quasiseparable.py",
    "test_cli_prove.py",
    "test_cli_encode.py",
    "test_probing.py",
    "test_scripts.py",
    "test_ssd.py",
    "test_meshes.py",
)

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets several workers begin with the longest files: none is left with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Returns a function ({key: text}) -> the config of tests/tiny.py, changed where asked."""
    from bigr_jax import config

    return lambda changes=None: config.load(TINY, changes)


@pytest.fixture(scope="session")
def saved() -> Callable[[str | os.PathLike[str], str], dict[str, Any]]:
    """Returns a function (work directory, stage) -> {path: NumPy array} of the newest
    checkpoint.
    """
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    def read(workdir: str | os.PathLike[str], stage: str) -> dict[str, Any]:
        steps = Path(workdir, stage, "checkpoints").resolve()
        newest = max((path for path in steps.iterdir() if path.name.isdigit()), key=_step)
        with ocp.StandardCheckpointer() as reader:
            state = reader.restore(newest / "state")
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    return read


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory of bigr:smoke, trained once for all workers; copy it to change it."""
    from bigr_jax.cli.main import main

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    workdir, done = root / "smoke", root / "smoke.done"
    with open(root / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            assert main(["train", "--config=bigr:smoke", f"--workdir={workdir}"]) == 0
            done.touch()
    return workdir


def _step(path: Path) -> int:
    return int(path.name)
