"""The small files of a work directory that say what it is: its config, data, base and writer."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from ml_collections import ConfigDict

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.data import Source, open_source
from bigr_jax.data.described import Described, describe
from bigr_jax.data.division import Held
from bigr_jax.errors import UserError, nearest
from bigr_jax.train import hosts

WRITER = "writer.json"
# Seconds that a file of one host may take to be seen by another: NFS and mounted buckets keep what
# they have read.
_SEEN = 90.0


class Base(NamedTuple):
    """Another work directory, and the one stage that is trained on those found there."""

    workdir: str
    stage: str


def saved(workdir: str) -> ConfigDict:
    """Returns the config of a work directory. Raises UserError where it is none."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        raise UserError(
            f"--workdir={workdir} is no work directory of `bigr train`: {path} is missing"
            f"{_beside(workdir)}"
        )
    return configs.load_json(path)


def _beside(workdir: str) -> str:
    """What may have been meant, or how to make one."""
    folder, name = os.path.split(os.path.normpath(workdir))
    found = sorted(Path(folder or ".").glob("*/config.json"))
    hint = nearest(name, (path.parent.name for path in found))
    return hint or f"; train one: bigr train --config=NAME:VARIANT --workdir={workdir}"


def mesh_of(config: ConfigDict) -> dict[str, str]:
    """Returns the overrides that place another config's run on the same mesh."""
    return {f"mesh.{axis}": str(size) for axis, size in config.mesh.items()}


def make(workdir: str) -> None:
    """Makes a work directory. Raises UserError where it cannot be made, or is a URL."""
    if "://" in workdir:
        raise UserError(
            f"--workdir={workdir} is a URL; mount the bucket and give the folder, e.g. "
            "gcsfuse --implicit-dirs my-bucket bucket; --workdir=bucket/run"
        )
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be made: {error.strerror}; give another"
        ) from None


@contextlib.contextmanager
def writing(workdir: str) -> Iterator[None]:
    """Makes this run the only writer of a work directory while the context lasts.

    Process 0 locks writer.json, which tells who it is. The lock ends with the process, however it
    ends; a file system without locks is written to without one. Raises UserError where another run
    holds the lock, and where the processes of this run do not all see the same directory.
    """
    own = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": _now(),
        "run": uuid.uuid4().hex,
    }
    with contextlib.ExitStack() as stack:

        def lock() -> dict[str, Any]:
            make(workdir)
            file = stack.enter_context(open(os.path.join(workdir, WRITER), "a+", encoding="utf-8"))
            _lock(file, workdir)
            stack.callback(file.truncate, 0)
            file.truncate(0)
            file.write(json.dumps(own) + "\n")
            file.flush()
            # A mounted bucket shows others no more than that.
            os.fsync(file.fileno())
            return own

        _check_shared(workdir, hosts.first(lock))
        yield
        # The lock is process 0's alone; it waits for what the others still write.
        hosts.meet()


def _lock(file: IO[str], workdir: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{workdir} is being trained by {_told(file.read())}; wait for it, stop it, or give "
            "another --workdir"
        ) from None
    except OSError:
        return


def _told(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (ValueError, KeyError):
        return "another process"


def _check_shared(workdir: str, writer: Mapping[str, Any]) -> None:
    end = time.monotonic() + _SEEN
    while _writer(workdir) != writer:
        if time.monotonic() > end:
            raise UserError(
                f"--workdir={workdir} on {socket.gethostname()} is not the directory that process "
                f"0 on {writer['host']} writes to; all hosts must see the same one"
            )
        time.sleep(0.2)


def _writer(workdir: str) -> Any:
    # It may be read while it is written.
    with contextlib.suppress(ValueError):
        return files.read_json(os.path.join(workdir, WRITER))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")


def write_base(workdir: str, base: Base) -> None:
    """Writes base.json; the base is named from here, so that both can be moved together."""
    where = os.path.relpath(base.workdir, workdir)
    files.write_json(os.path.join(workdir, "base.json"), {"workdir": where, "stage": base.stage})


def read_base(workdir: str) -> Base | None:
    """Returns the base of a work directory, or None."""
    found = files.read_json(os.path.join(workdir, "base.json"))
    if found is None:
        return None
    return Base(os.path.normpath(os.path.join(workdir, found["workdir"])), found["stage"])


def write_data(workdir: str, sources: Mapping[str, Source]) -> None:
    """Writes data.json, which is all that using the model needs of its data."""
    record = {split: describe(source) for split, source in sources.items()}
    files.write_json(os.path.join(workdir, "data.json"), record)


def read_data(workdir: str, section: Any) -> dict[str, Source] | None:
    """Returns the sources that data.json describes, opened only when they are read, or None.

    section  of the config, that names the data
    """
    found = files.read_json(os.path.join(workdir, "data.json"))
    if found is None:
        return None
    sources = {
        split: Described(record, functools.partial(open_source, section, split))
        for split, record in found.items()
    }
    if "held" in sources:
        sources["train"].held = Held(sources["held"], getattr(section, "held_every", 1))
    return dict(sources)
