"""Ctrl-C in a process of `bigr`: heard at once, lost nowhere, and without a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

# Seconds that Python is given to answer before a line says why it does not.
_ANSWER = 1.0
_AGAIN = 0.05
_WAITING = (
    "bigr: interrupted; this ends with what is being compiled or computed, Ctrl-C again leaves now"
)
_heard = threading.Event()
_raised = False


def install() -> None:
    """Makes SIGINT raise KeyboardInterrupt in this process, in the main thread, whatever it does.

    XLA compiles and runs without looking at signals: a thread says so, and a second signal then
    ends the process at once. A signal that the shell has ignored, as for a job in the background,
    stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGINT, _interrupt)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    sys.unraisablehook = _unraisable


def uninstall() -> None:
    """Leaves SIGINT to the system, which ends the process without a word: all is said."""
    if signal.getsignal(signal.SIGINT) == _interrupt:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def heard() -> None:
    """Is to be called by other handlers of SIGINT: Python has answered."""
    _heard.set()


def raised() -> bool:
    """Whether a KeyboardInterrupt was raised; libraries may have made another error of it."""
    return _raised


def _interrupt(signum: int, frame: Any) -> None:
    global _raised
    _raised = True
    _heard.set()
    if _importing(frame):
        # Nothing is begun yet, and a module that is half imported makes anything of an error.
        os.write(2, b"bigr: interrupted\n")
        os._exit(128 + signal.SIGINT)
    raise KeyboardInterrupt


def _importing(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _watch(reader: int) -> None:
    while signal.SIGINT not in os.read(reader, 64):
        pass
    while not _heard.wait(_ANSWER):
        print(_WAITING, file=sys.stderr, flush=True)
        while signal.SIGINT not in os.read(reader, 64):
            pass
        if not _heard.is_set():
            os._exit(128 + signal.SIGINT)


def _unraisable(found: Any) -> None:
    if found.exc_type is KeyboardInterrupt:
        # It hit a destructor or a callback, where it would be lost; soon it will not.
        threading.Timer(_AGAIN, os.kill, [os.getpid(), signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(found)
