"""What one process of several decides, with the others played by threads; see tests/multiprocess
for real ones.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bigr_jax.data import Share
from bigr_jax.errors import UserError
from bigr_jax.train import hosts, sharding, team
from bigr_jax.train.team import Store, Team


class Client:
    """The key-value store of a coordinator, for threads."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            assert allow_overwrite or key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def key_value_increment(self, key, increment):
        with self._changed:
            self._values[key] = str(int(self._values.get(key, 0)) + increment)
            return int(self._values[key])

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_ms / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED: nothing there")
            return self._values[key]

    def key_value_dir_get(self, prefix):
        with self._changed:
            return [pair for pair in self._values.items() if pair[0].startswith(prefix)]


def together(count, function):
    """Returns what function(process) returns in each of `count` threads."""
    found = {}

    def run(process):
        found[process] = function(process)

    threads = [threading.Thread(target=run, args=(process,)) for process in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count
    return [found[process] for process in range(count)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(team, "BEAT", 0.02)
    monkeypatch.setattr(team, "_POLL_MS", 20)


def test_all_get_what_process_0_finds_and_wait_for_each_other(quick):
    client, order = Client(), []

    def process(index):
        store = Store(client, index, 3)
        time.sleep(0.05 * (2 - index))
        values = [store.first(lambda: {"own": index}), store.first(lambda: [index])]
        order.append("before")
        store.meet()
        order.append("after")
        return values

    assert together(3, process) == [[{"own": 0}, [0]]] * 3
    assert order == ["before"] * 3 + ["after"] * 3


@pytest.mark.parametrize("asks", [(0,), (2,), (0, 1)])
def test_all_stop_at_the_same_check_soon_after_one_was_asked_to(quick, asks):
    client = Client()

    def process(index):
        one, rng = Team(Store(client, index, 3), 60.0), random.Random(index)
        one.start()
        for check in range(1, 10_000):
            time.sleep(rng.uniform(0, 0.004) * (index + 1))
            asked = [15] if index in asks and check >= 10 else []
            if signum := one.check(asked):
                one.part()
                return check, signum, one.stopped
        raise AssertionError("never stopped")

    stops = together(3, process)
    assert len(set(stops)) == 1
    check, signum, stopped = stops[0]
    assert 10 <= check < 400 and signum == 15 and stopped


def test_process_0_misses_the_one_that_falls_silent(quick, monkeypatch):
    """Process 2 gives two signs of life, process 1 leaves after its first."""
    said = threading.Event()
    lines = []

    def end(self, line):
        lines.append(line)
        said.set()
        self._leaving.set()

    monkeypatch.setattr(Team, "end", end)
    client = Client()
    for index in (1, 2):
        client.key_value_set(f"bigr/who/{index}", f"process {index} (host h, pid {index})")
        client.key_value_increment("bigr/meet/1", 1)
        client.key_value_set(f"bigr/beat/{index}", "1")
    client.key_value_set("bigr/news/left/1", json.dumps({"text": "it is full", "own": True}))
    monkeypatch.setattr(team, "_GRACE", 1000)
    one = Team(Store(client, 0, 3), patience=10 * team.BEAT)
    one.last_words = lambda: "step 8 is intact"
    begin = time.monotonic()
    one.start()
    time.sleep(5 * team.BEAT)
    client.key_value_set("bigr/beat/2", "2", allow_overwrite=True)
    assert said.wait(10)
    assert time.monotonic() - begin > 12 * team.BEAT
    assert lines == ["process 2 (host h, pid 2) is gone; step 8 is intact"]
    assert client.blocking_key_value_get("bigr/news/gone/2", 1) == ""


def test_what_ended_one_is_told_when_the_others_had_time_to_say_it(quick, monkeypatch):
    lines = []
    monkeypatch.setattr(Team, "end", lambda self, line: lines.append(line))
    one = Team(Store(Client(), 0, 2), 1.0)
    news = {"left/1": json.dumps({"text": "it is full", "own": True})}
    for _ in range(team._GRACE):
        one._hear(news)
    assert lines == []
    one._hear(news)
    assert lines == ["process 1 ended: it is full"]


def test_a_death_is_told_even_where_the_files_are_gone():
    one = Team(Store(Client(), 0, 2), 1.0)
    assert one.lost(1) == "process 1 is gone; the same command starts again"
    one.last_words = lambda: (_ for _ in ()).throw(OSError("stale file handle"))
    assert one.lost(1) == "process 1 is gone; the same command goes on from the newest checkpoint"


def test_one_process_alone_decides_by_itself():
    assert not hosts.several()
    assert hosts.first(lambda: 3) == 3
    hosts.meet()
    hosts.agree(lambda: pytest.fail("nothing is to be compared"))
    assert hosts.stop_agreed([]) is None and hosts.stop_agreed([2, 15]) == 2
    with hosts.last_words(lambda: pytest.fail("there is nobody to lose")):
        pass
    with hosts.joined(hosts.Address("nowhere:1", 1, 0), pytest.fail) as process:
        assert process == 0 and not hosts.several()


def test_what_differs_is_named_with_both_values():
    mine = {"seed": "1", "lr": "0.1", "own": '"x"'}
    theirs = {"seed": "1", "lr": "0.2", "other": "3"}
    assert hosts._differences(mine, theirs) == (
        'lr is 0.1, process 0 has 0.2; other is absent, process 0 has 3; own is "x", process 0 has '
        "absent"
    )
    assert hosts._differences(mine, mine) == ""
    many = {f"key{n}": str(n) for n in range(9)}
    assert hosts._differences(many, {}).endswith("; and 4 more")


SLURM = {
    "SLURM_JOB_ID": "8199",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_slurm_says_where_the_processes_meet(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert hosts.found() == hosts.Address("node003:61447", 8, 5, [1])
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    assert hosts.found().coordinator == "node003:1234"


def test_without_a_cluster_it_says_how_to_tell(monkeypatch):
    for name in (*SLURM, "JAX_COORDINATOR_ADDRESS", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no cluster.*--coordinator=HOST:PORT --processes=N"):
        hosts.found()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"port .* of {where}, for process 0: Address already"):
            hosts._check_free(where)
    hosts._check_free(where)


def mesh_of(*rows):
    """A mesh of devices of processes: a row per data and fsdp, a column per model and seq."""
    grid = np.empty((len(rows), 1, len(rows[0]), 1), object)
    for index, row in enumerate(rows):
        for column, process in enumerate(row):
            grid[index, 0, column, 0] = SimpleNamespace(process_index=process)
    return SimpleNamespace(devices=grid, shape=dict(zip(sharding.AXES, grid.shape, strict=True)))


@pytest.mark.parametrize(
    "rows, blocks",
    [
        ([[0], [0], [1], [1]], {0: (0, 1), 1: (2, 3)}),
        ([[0, 0], [1, 1]], {0: (0,), 1: (1,)}),
        ([[0, 1], [2, 3]], {0: (0,), 1: (0,), 2: (1,), 3: (1,)}),
        ([[1], [0], [1], [0]], {0: (1, 3), 1: (0, 2)}),
        ([[1, 1, 0, 0], [3, 3, 2, 2]], {0: (0,), 1: (0,), 2: (1,), 3: (1,)}),
    ],
)
def test_each_process_feeds_the_rows_that_its_devices_hold(monkeypatch, rows, blocks):
    for process, own in blocks.items():
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert hosts.share(mesh_of(*rows)) == Share(own, len(rows))


def test_rows_that_every_process_holds_are_the_whole_batch():
    assert hosts.share(mesh_of([0, 1], [0, 1])) == Share()


def test_rows_are_cut_by_fsdp_first(monkeypatch):
    # Two hosts of two devices, data between them, fsdp within.
    mesh = mesh_of([0], [0], [1], [1])
    mesh.devices = mesh.devices.reshape(2, 2, 1, 1)
    mesh.shape = {"data": 2, "fsdp": 2, "model": 1, "seq": 1}
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert hosts.share(mesh) == Share((process, 2 + process), 4)


@pytest.mark.parametrize("rows", [[[0, 0], [0, 1]], [[0, 0], [0, 0], [1, 1]]])
def test_rows_that_do_not_divide_over_the_processes_are_refused(rows):
    with pytest.raises(UserError, match="do not divide over 2 processes"):
        hosts.share(mesh_of(*rows))
