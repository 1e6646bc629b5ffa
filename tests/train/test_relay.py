"""The way to the coordinator, a process of its own, between two ends that the test plays."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from bigr_jax.train import relay


@pytest.fixture
def folder():
    # Longer paths than those of pytest are no names of sockets.
    made = tempfile.mkdtemp()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def ends(folder):
    """The relay's process, the near end and the far end of a connection."""
    server = socket.create_server(("127.0.0.1", 0))
    path, port = os.path.join(folder, "c"), server.getsockname()[1]
    pipe = subprocess.PIPE
    words = [sys.executable, "-I", "-S", relay.__file__, path, "127.0.0.1", str(port)]
    child = subprocess.Popen(words, stdin=pipe, stdout=pipe)
    assert child.stdout.readline() == b"ready\n"
    near = socket.socket(socket.AF_UNIX)
    near.connect(path)
    server.settimeout(30)
    far, _ = server.accept()
    for end in (near, far):
        end.settimeout(30)
    yield child, near, far
    for end in (near, far, server, child.stdin, child.stdout):
        end.close()
    child.kill()
    child.wait()


def received(end, count):
    found = b""
    while len(found) < count:
        found += end.recv(1 << 16)
    return found


def test_bytes_go_both_ways(ends):
    _, near, far = ends
    for source, target in ((near, far), (far, near)):
        data = os.urandom(300_000)
        source.sendall(data[:5])
        assert received(target, 5) == data[:5]
        source.sendall(data[5:100_005])
        assert received(target, 100_000) == data[5:100_005]


def test_the_end_of_the_far_end_is_told_and_the_near_end_stays(ends):
    child, near, far = ends
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    far.close()
    assert child.stdout.readline() == b"gone\n"
    near.settimeout(0.3)
    with pytest.raises(TimeoutError):
        near.recv(1)


def test_leaving_is_no_death(ends):
    child, near, far = ends
    near.close()
    assert far.recv(1) == b""
    far.close()
    time.sleep(0.2)
    child.stdin.close()
    assert child.stdout.read() == b"" and child.wait(30) == 0


def test_it_ends_with_the_process_that_it_serves_and_leaves_nothing(ends, folder):
    child, _, _ = ends
    child.stdin.close()
    assert child.wait(30) == 0
    assert not os.path.exists(folder)
