"""`bigr doctor`: what this machine has, and what is wrong with it."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import bigr_jax
from bigr_jax import progress
from bigr_jax.cli.command import Arguments, Command, cache_directory, no_flags
from bigr_jax.errors import UserError

# The oldest and the newest versions that the tests run with; setup.py asks for the oldest.
TESTED = {
    "jax": ("0.10.2", "0.12.0.1"),
    "flax": ("0.12.8", "0.12.12"),
    "optax": ("0.2.8", "0.2.8"),
    "orbax-checkpoint": ("0.12.8", "0.12.8"),
    "tensorflow-datasets": ("4.9.10", "4.9.10"),
    "ml-collections": ("1.1.0", "1.1.0"),
    "grain": ("0.2.18", "0.2.18"),
    "safetensors": ("0.8.0", "0.8.0"),
}
PYTHON = (3, 11), (3, 12)
OPTIONAL = {
    "libtpu": "only for TPUs: pip install 'bigr_jax[tpu]'",
    "tensorboardX": "for config.logging.tensorboard: pip install tensorboardX",
    "wandb": "for config.logging.wandb: pip install wandb",
    "tensorflow": "not needed",
}
# Chips that JAX uses only with the extra of that name: what shows that one is here.
CHIPS = {"cuda": "/dev/nvidia[0-9]*", "tpu": "/dev/accel[0-9]*", "TPU": "/dev/vfio/[0-9]*"}
# Of the environment, what changes programs and where they run.
ENVIRONMENT = (
    "JAX_",
    "XLA_",
    "LIBTPU_",
    "TPU_",
    "CUDA_VISIBLE",
    "NVIDIA_VISIBLE",
    "BIGR_",
    "TFDS_",
)
LEAST_DISK = LEAST_MEMORY = 1 << 30


class Line(NamedTuple):
    """One finding; `wrong` says what to mend, or is ""."""

    name: str
    found: str
    wrong: str = ""


def run(arguments: Arguments) -> None:
    """Prints the findings, then what is wrong, which is an error."""
    lines = [*packages(), *machine(), *data_sets()]
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{'!' if line.wrong else ' '} {line.name:<{width}}  {line.found}")
    wrong = [line for line in lines if line.wrong]
    print("\nnothing is wrong" if not wrong else "\nwrong:")
    for line in wrong:
        print(f"  {line.name}: {line.wrong}")
    if wrong:
        raise UserError(f"the doctor found wrong: {', '.join(line.name for line in wrong)}")


def packages() -> Iterator[Line]:
    """Yields the versions of Python and of the packages."""
    oldest, newest = (".".join(map(str, version)) for version in PYTHON)
    new = sys.version_info[:2] > PYTHON[1]
    python = platform.python_version() + f" (newer than tested: {newest})" * new
    old = f"Python {oldest} to {newest} is needed: make an environment of it, and install there"
    yield Line("bigr_jax", bigr_jax.__version__)
    yield Line("python", python, old if sys.version_info[:2] < PYTHON[0] else "")
    for name, (least, most) in TESTED.items():
        found = _version(name)
        mend = f"pip install -U '{name}>={least}'"
        if found is None:
            yield Line(name, "absent", mend)
            continue
        note = f" (newer than tested: {most})" if _numbers(found) > _numbers(most) else ""
        yield Line(name, found + note, mend if _numbers(found) < _numbers(least) else "")
    jax, jaxlib = _version("jax"), _version("jaxlib")
    unlike = jax and _numbers(jax)[:3] != _numbers(jaxlib or "")[:3]
    yield Line("jaxlib", jaxlib or "absent", f"pip install 'jaxlib=={jax}'" if unlike else "")
    for name, why in OPTIONAL.items():
        yield Line(name, _version(name) or f"absent ({why})")


def machine() -> Iterator[Line]:
    """Yields devices, processors, memory, folders that are written to, and the environment."""
    with progress.slow("looking for devices"):
        devices = _guarded("devices", _devices)
    yield devices._replace(wrong=_in_use(devices.wrong) or _unused(devices.found))
    if not devices.wrong:
        with progress.slow("compiling"):
            yield _guarded("first program", _compile)
    yield Line("processors", str(os.cpu_count()))
    yield _guarded("memory", _memory)
    yield _folder(
        "compiled programs", cache_directory(), "set JAX_COMPILATION_CACHE_DIR to another"
    )
    yield _folder("work directories", "runs", "give --workdir=DIR in another place")
    told = [f"{name}={os.environ[name]}" for name in sorted(os.environ)]
    for text in [text for text in told if text.startswith(ENVIRONMENT)]:
        yield Line("environment", text)


def data_sets() -> Iterator[Line]:
    """Yields where the fetchable data sets lie."""
    from bigr_jax.data import catalogue

    for name in catalogue.CARDS:
        place = catalogue.locate(name)
        yield Line(f"data {name}", str(place) if place else f"absent (bigr data fetch {name})")


def _devices() -> str:
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _in_use(wrong: str) -> str:
    """What is wrong with the devices, and the mend where another process has them."""
    busy = "already in use" in wrong or "libtpu_lockfile" in wrong
    return wrong + "; end that process, or set JAX_PLATFORMS=cpu to do without" * busy


def _unused(found: str) -> str:
    """The chip that is here and that JAX does not use, with the mend, or ""."""
    if "(cpu)" not in found:
        return ""
    for extra, pattern in CHIPS.items():
        if chips := sorted(glob.glob(pattern)):
            hidden = os.environ.get("JAX_PLATFORMS")
            mend = f"pip install -U 'bigr_jax[{extra.lower()}]'"
            mend = f"unset JAX_PLATFORMS, which is {hidden!r}" if hidden else mend
            return f"{chips[0]} is here, and JAX uses the CPU alone: {mend}"
    return ""


def _compile() -> str:
    import jax
    import jax.numpy as jnp

    begin = time.perf_counter()
    # Of no size that anything else has, so that it is not found among what was compiled before.
    jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((37, 37))).block_until_ready()
    return f"compiled and run in {time.perf_counter() - begin:.1f} s"


def _memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    whole, free = (os.sysconf(f"SC_{name}PHYS_PAGES") * page for name in ("", "AV"))
    if os.path.exists("/proc/meminfo"):
        text = Path("/proc/meminfo").read_text("ascii")
        free = int(text.partition("MemAvailable:")[2].split()[0]) << 10
    told = f"{whole / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of it free"
    if free < LEAST_MEMORY:
        raise MemoryError(f"{told}; end what else runs")
    return told


def _folder(name: str, folder: str, mend: str) -> Line:
    parent = os.path.abspath(folder)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    free = shutil.disk_usage(parent).free
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    if not os.access(parent, os.W_OK):
        return Line(name, found, f"{parent} is not writable; {mend}")
    return Line(name, found, f"the disk is full; make room, or {mend}" if free < LEAST_DISK else "")


def _guarded(name: str, find: Callable[[], str]) -> Line:
    # A broken driver or plugin raises almost anything; saying what is this command's purpose.
    try:
        return Line(name, find())
    except Exception as error:
        return Line(name, "unknown", " ".join(str(error).split()) or type(error).__name__)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "found, of unknown version" if util.find_spec(name.replace("-", "_")) else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


COMMAND = Command(
    name="doctor",
    summary="Says which versions, devices, folders and data sets are here, and what is wrong with\n"
    "them; exits with status 0 only where nothing is.",
    usage="",
    examples=("bigr doctor", "JAX_PLATFORMS=cpu bigr doctor"),
    define=no_flags,
    run=run,
)
