"""A way to JAX's coordinator that does not break when the coordinator dies.

When its connection to the coordinator breaks, JAX aborts a process with a page of C++ log. The
connection to this relay stays; that the other end is gone is told on stdout instead, and the
process can end in its own words. A process apart, of the standard library alone, waits for nothing
that holds up the one it serves.

    python -I -S relay.py SOCKET HOST PORT

listens on the Unix socket, says "ready", connects each of its connections to HOST:PORT, and says
"gone" once that end has closed one. It ends when its stdin does, and removes the socket's folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time

_CHUNK = 1 << 16
_RETRY = 0.2


def serve(path: str, host: str, port: int) -> None:
    """Relays connections to the Unix socket `path` for as long as stdin is open."""
    # What ends the process that is served, as a Ctrl-C, is for that process to tell.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        threading.Thread(target=_accept, args=(listener, host, port), daemon=True).start()
        _say("ready")
        while os.read(0, _CHUNK):
            pass
    with contextlib.suppress(OSError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(path))


def _accept(listener: socket.socket, host: str, port: int) -> None:
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_connect, args=(near, host, port), daemon=True).start()


def _connect(near: socket.socket, host: str, port: int) -> None:
    while True:
        # The coordinator may start later than those who look for it.
        with contextlib.suppress(OSError):
            far = socket.create_connection((host, port), timeout=60)
            break
        time.sleep(_RETRY)
    far.settimeout(None)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    left = threading.Event()
    threading.Thread(target=_send, args=(near, far, left), daemon=True).start()
    if not _copy(far, near) or left.is_set():
        return
    _say("gone")
    # Closing the near end is what would end the process that is served.
    threading.Event().wait()


def _send(near: socket.socket, far: socket.socket, left: threading.Event) -> None:
    if _copy(near, far):
        left.set()
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> bool:
    """Copies until one end closes; returns whether it was the source."""
    try:
        while data := source.recv(_CHUNK):
            try:
                target.sendall(data)
            except OSError:
                return False
    except OSError:
        pass
    return True


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
