"""`bigr doctor`: what this machine has, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, util
from typing import NamedTuple

import bigr_jax
from bigr_jax.cli.command import Arguments, Command, cache_directory, no_flags

# The oldest versions that the tests run with; setup.py asks for the same.
NEEDED = {
    "jax": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "tensorflow-datasets": "4.9.10",
    "ml-collections": "1.1.0",
    "grain": "0.2.18",
    "safetensors": "0.8.0",
}
OPTIONAL = {
    "libtpu": "only for TPUs: pip install 'bigr_jax[tpu]'",
    "tensorboardX": "for config.logging.tensorboard: pip install tensorboardX",
    "wandb": "for config.logging.wandb: pip install wandb",
    "tensorflow": "not needed",
}


class Line(NamedTuple):
    """One finding; `wrong` says what to mend, or is ""."""

    name: str
    found: str
    wrong: str = ""


def run(arguments: Arguments) -> None:
    """Prints the findings, then what is wrong."""
    lines = [*packages(), *machine(), *data_sets()]
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{'!' if line.wrong else ' '} {line.name:<{width}}  {line.found}")
    wrong = [line for line in lines if line.wrong]
    print("\nnothing is wrong" if not wrong else "\nwrong:")
    for line in wrong:
        print(f"  {line.name}: {line.wrong}")


def packages() -> Iterator[Line]:
    """Yields the versions of Python and of the packages."""
    python = platform.python_version()
    yield Line("bigr_jax", bigr_jax.__version__)
    yield Line("python", python, "" if sys.version_info >= (3, 11) else "Python 3.11 is needed")
    for name, oldest in NEEDED.items():
        found = _version(name)
        mend = f"pip install -U '{name}>={oldest}'"
        if found is None:
            yield Line(name, "absent", mend)
        else:
            yield Line(name, found, mend if _numbers(found) < _numbers(oldest) else "")
    for name, why in OPTIONAL.items():
        yield Line(name, _version(name) or f"absent ({why})")


def machine() -> Iterator[Line]:
    """Yields devices, processors, memory and the folder of compiled programs."""
    yield _guarded("devices", _devices)
    yield Line("processors", str(os.cpu_count()))
    yield _guarded("memory", _memory)
    folder = cache_directory()
    parent = folder
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    writable = os.access(parent, os.W_OK)
    mend = "" if writable else "not writable; set JAX_COMPILATION_CACHE_DIR to a folder that is"
    yield Line("compiled programs", folder, mend)


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


def _memory() -> str:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.1f} GiB"


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
    summary="Says which versions, devices and data sets are here, and what is wrong with them.",
    usage="",
    example="bigr doctor",
    define=no_flags,
    run=run,
)
