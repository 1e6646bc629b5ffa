"""A command as one of several processes, which hosts run alike.

They meet at JAX's coordinator, see that all were started alike, decide together what files and
signals mean, and end together. With one process all of this is nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import bigr_jax
from bigr_jax.data import Share
from bigr_jax.errors import UserError
from bigr_jax.train import relay, sharding
from bigr_jax.train.team import Store, Team

PATIENCE = 20.0
# Differing compiler options make differing programs, which then wait for each other.
_OPTIONS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_LISTED = 5
_team: Team | None = None
_store: Store | None = None


class Address(NamedTuple):
    """Where the processes of a run meet, how many they are, and which one this is.

    devices  numbers of this host's devices that are this process's own; None: all
    """

    coordinator: str
    processes: int
    process: int
    devices: Sequence[int] | None = None


@contextlib.contextmanager
def joined(
    address: Address | None, say: Callable[[BaseException], int], timeout: int = 300
) -> Iterator[int]:
    """Makes this process one of several while the context lasts, before JAX looks for devices;
    yields which one.

    address  None: as the cluster says, see `found`
    say      prints an error and returns the exit status, see `Team.fail`
    timeout  seconds to wait for the others

    An error ends the process and, by telling them, all the others; the death of one ends all, and
    so does one that does not come.
    Raises UserError where they differ in version or compiler options.
    """
    global _team, _store
    address = address or found()
    if address.processes == 1:
        yield 0
        return
    with contextlib.ExitStack() as stack:
        lost = _connect(address, say, timeout, stack)
        team = Team(store(), float(os.environ.get("BIGR_PATIENCE", PATIENCE)))
        _team = team
        if lost is not None:
            threading.Thread(target=_mourn, args=(lost, team), daemon=True).start()
        try:
            team.start()
            agree(lambda: {"version": versions(), "environment": options()})
            yield address.process
            team.part()
        except BaseException as error:
            if not team.stopped or not isinstance(error, KeyboardInterrupt):
                team.fail(error, say)
            team.part()
            jax.distributed.shutdown()
            if address.process:
                # Process 0 says it, once for all.
                raise SystemExit(128 + getattr(error, "signum", 2)) from None
            raise
        finally:
            _team = _store = None
        jax.distributed.shutdown()


def found() -> Address:
    """Returns what the cluster says: Google Cloud's TPU hosts, GKE, Slurm, Open MPI, Kubernetes.

    Raises UserError where there is none.
    """
    from jax._src import clusters

    where, own = os.environ.get("JAX_COORDINATOR_ADDRESS"), os.environ.get("JAX_LOCAL_DEVICE_IDS")
    numbers = [int(number) for number in own.split(",")] if own else None
    try:
        detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            where, None, None, numbers, None, 300
        )
    except Exception as error:
        raise UserError(f"--distributed: the cluster could not be read: {error}") from None
    coordinator, processes, process, devices = detected
    if coordinator is None or processes is None or process is None:
        raise UserError(
            "--distributed: no cluster that JAX knows is found here (TPU hosts, Slurm, Open MPI, "
            "Kubernetes); by hand: --coordinator=HOST:PORT --processes=N --process=I"
        )
    return Address(coordinator, processes, process, devices)


def store() -> Store:
    """Returns the key-value store of this run.

    Raises UserError where this is one of several processes that have not met.
    """
    global _store
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise UserError(
            f"this is one of {jax.process_count()} processes, which have not met: add --distributed"
        )
    if _store is None or _store.client is not client:
        state = distributed.global_state
        _store = Store(client, state.process_id, state.num_processes)
    return _store


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() or jax.process_count() > 1


def first(make: Callable[[], Any]) -> Any:
    """Returns what `make` gives on process 0, which JSON can hold, so that all decide alike."""
    return store().first(make) if several() else make()


def meet() -> None:
    """Returns when all processes are here."""
    if several():
        store().meet()


def say(text: str) -> None:
    """Prints a line on stderr, once for all processes."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def stop_agreed(asked: Sequence[int]) -> int | None:
    """Returns the signal's number where all processes shall stop, or None; called by all in turn.

    asked  the signals that this process was sent
    """
    if _team is None:
        return asked[0] if asked else None
    return _team.check(asked)


@contextlib.contextmanager
def last_words(text: Callable[[], str]) -> Iterator[None]:
    """Lets `text` say, where another process dies meanwhile, what that means for the run."""
    if _team is None:
        yield
        return
    before, _team.last_words = _team.last_words, text
    yield
    # An error may be the first sign of a death: then the words are still to come.
    _team.last_words = before


def agree(facts: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
    """Raises UserError on all processes where one differs from process 0, naming it and the keys.

    facts  () -> {kind: {key: value}}, e.g. {"config": {"seed": 0}}
    """
    if not several():
        return
    shared = store()
    key = shared.name("agree")
    flat = {
        kind: {name: json.dumps(value, default=str) for name, value in found.items()}
        for kind, found in facts().items()
    }
    if shared.index == 0:
        shared.put(key, json.dumps(flat))
    theirs = json.loads(shared.get(key))
    for kind, mine in flat.items():
        if wrong := _differences(mine, theirs.get(kind, {})):
            who = f"process {shared.index}" if _team is None else _team.name(shared.index)
            text = f"{who} was started with another {kind}: {wrong}"
            shared.put(f"{key}/wrong/{shared.index:06d}", text)
            break
    shared.meet()
    if said := shared.below(f"{key}/wrong/"):
        more = f" (and {len(said) - 1} more processes)" * (len(said) > 1)
        raise UserError(said[min(said)] + more)


def versions() -> dict[str, str]:
    """Returns the versions that all processes must share."""
    return {"bigr_jax": bigr_jax.__version__, **{n: metadata.version(n) for n in _PACKAGES}}


def options() -> dict[str, str]:
    """Returns the environment variables that all processes must share."""
    return {name: os.environ.get(name, "") for name in _OPTIONS}


def share(mesh: Mesh) -> Share:
    """Returns what this process reads of a batch, to feed it to its devices of a mesh.

    Processes that hold the same rows, as those of one model axis do, read the same. Raises
    UserError where the processes' rows overlap in part.
    """
    # A row for every block of a batch, in their order, of the devices that hold it.
    cut = [sharding.AXES.index(name) for name in sharding.RULES["batch"] or ()]
    rows = np.moveaxis(mesh.devices, cut, range(len(cut)))
    rows = rows.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    held: dict[int, list[int]] = {}
    for row, across in enumerate(rows):
        for process in {device.process_index for device in across}:
            held.setdefault(process, []).append(row)
    parts = {tuple(part) for part in held.values()}
    if sum(map(len, parts)) != len(rows) or len({len(part) for part in parts}) > 1:
        raise UserError(
            f"mesh {dict(mesh.shape)}: the rows of a batch do not divide over {len(held)} processes"
        )
    own = tuple(held[jax.process_index()])
    return Share(own, len(rows)) if len(parts) > 1 else Share()


def devices() -> dict[str, Any]:
    """Returns what is the same of every process's devices."""
    own = jax.local_devices()
    return {"kind": own[0].device_kind, "platform": own[0].platform, "of each process": len(own)}


def _differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    found = [
        f"{key} is {mine.get(key, 'absent')}, process 0 has {theirs.get(key, 'absent')}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]
    found[_LISTED:] = [f"and {len(found) - _LISTED} more"] * (len(found) > _LISTED)
    return "; ".join(found)


def _connect(
    address: Address, say: Callable[[BaseException], int], timeout: int, stack: contextlib.ExitStack
) -> Any:
    """Connects to the coordinator and returns the pipe on which the relay tells of its end."""
    # Its SIGTERM handler would take the place of Python's.
    jax.config.update("jax_enable_preemption_service", False)
    coordinator, lost = address.coordinator, None
    if address.process and not getattr(jax.config, "jax_mtls_cert_file", None):
        coordinator, lost = _relayed(coordinator, stack)

    if address.process == 0:
        _check_free(coordinator)

    def give_up() -> None:
        missing = UserError(
            f"process {address.process} has waited {timeout} s at {address.coordinator} for all "
            f"{address.processes} processes: start the same command on all hosts, each with its "
            "own number, where process 0 can be reached at this address"
        )
        os._exit(say(missing))

    # JAX itself would abort with a page of C++ log.
    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    how = (coordinator, address.processes, address.process, address.devices, "deactivate")
    try:
        jax.distributed.initialize(*how, initialization_timeout=2 * timeout)
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise UserError(f"process {address.process} at {address.coordinator}: {text}") from None
    finally:
        timer.cancel()
    return lost


def _check_free(coordinator: str) -> None:
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"port {port} of {coordinator}, for process 0: {why}") from None


def _relayed(coordinator: str, stack: contextlib.ExitStack) -> tuple[str, Any]:
    host, _, port = coordinator.rpartition(":")
    path = os.path.join(tempfile.mkdtemp(prefix="bigr"), "c")
    words = [sys.executable, "-I", "-S", relay.__file__, path, host.strip("[]"), port]
    pipe = subprocess.PIPE
    child = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert child.stdin is not None and child.stdout is not None
    stack.callback(child.wait)
    stack.callback(child.stdin.close)
    # The path may be too long for a socket; then a death of process 0 is told by JAX, at length.
    ready = child.stdout.readline() == "ready\n"
    return (f"unix:{path}", child.stdout) if ready else (coordinator, None)


def _mourn(lost: Any, team: Team) -> None:
    if lost.readline().strip() == "gone":
        team.coordinator_gone()
