"""Devices that are not here: TPU slices known to their compiler, and simulated CPU devices."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata

import jax

from bigr_jax.errors import UserError
from bigr_jax.train.sharding import AXES

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# The slices that can be had, by chip; those of three dimensions also in multiples of four.
SLICES: Mapping[str, tuple[str, ...]] = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
    "v5e": _FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
    "v6e": _FLAT,
}
# What libtpu would ask a machine with a TPU for.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
LEGAL = (
    f"v5e or v6e with {', '.join(_FLAT)}, and v4 or v5p with {', '.join(SLICES['v5p'])} or three "
    "multiples of 4 such as 4x4x8; several slices with their number before, e.g. v5e:16x16, "
    "2*v5e:16x16"
)


def tpu_slice(name: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice such as "v5e:16x16", or of several, "2*v5e:16x16", to
    compile for without having them.

    Raises UserError for a slice that cannot be had, and where the compiler, libtpu, is missing.
    """
    count, _, one = name.rpartition("*")
    kind, _, shape = one.partition(":")
    big = bool(re.fullmatch(r"\d+x\d+x\d+", shape)) and all(
        int(side) and int(side) % 4 == 0 for side in shape.split("x")
    )
    known = shape in SLICES.get(kind, ()) or (big and "2x2x1" in SLICES.get(kind, ()))
    if not known or not re.fullmatch(r"([1-9]\d*)?", count):
        raise UserError(f"--topology={name} is no TPU slice; legal: {LEGAL}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU compiler, which runs on any Linux x86-64: "
            f"pip install '{compiler()}'"
        )
    prepare_compiler()
    from jax.experimental import topologies

    slices = {"num_slices": int(count)} if count and int(count) > 1 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=one, **slices)
    return list(found.devices)


def compiler() -> str:
    """Returns the requirement of the TPU compiler that belongs to the installed jax."""
    found = [line for line in metadata.requires("jax") or () if line.startswith("libtpu")]
    return found[0].partition(";")[0].strip() if found else "libtpu"


def prepare_compiler() -> None:
    """Keeps libtpu from looking for a TPU of this machine, before it is loaded."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def mesh_sizes(text: str) -> dict[str, int]:
    """Returns {"data": 2, "fsdp": 4} of "data=2,fsdp=4". Raises UserError for anything else."""
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(
                f"--mesh={text}: {part!r} is not AXIS=SIZE, each axis once; "
                f"legal axes: {', '.join(AXES)}, e.g. data=2,fsdp=4"
            )
        sizes[axis] = int(size)
    return sizes


def simulated(sizes: Mapping[str, int]) -> Sequence[jax.Device]:
    """Returns the devices of a mesh of these sizes, simulated on this machine's processor.

    Raises UserError where a size is left open, and where JAX has started with fewer devices.
    """
    count = math.prod(sizes.values())
    if count < 1:
        raise UserError(
            "--mesh: -1, all devices that are left, wants a --topology; legal: 1, 2, ..."
        )
    try:
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        # The backend is there already; it may have enough devices.
        pass
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--mesh wants {count} devices, and JAX has started with {len(devices)}; "
            f"set JAX_NUM_CPU_DEVICES={count} before Python starts"
        )
    return devices[:count]
