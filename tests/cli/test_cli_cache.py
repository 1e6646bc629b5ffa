"""Compiled programs are kept where the environment says, or in the user's cache."""

from __future__ import annotations

from typing import Any

import pytest

SHOW = (
    "import jax; from bigr_jax.cli import command; command.cache_compilations();"
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
