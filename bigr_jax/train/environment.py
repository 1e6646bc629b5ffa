"""What a run was made with."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import jax

import bigr_jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy")


def environment() -> dict[str, Any]:
    """Returns versions and devices, for env.json."""
    devices = jax.devices()
    return {
        "bigr_jax": bigr_jax.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
        "command": sys.argv,
    }
