"""The processes of one run, watching over each other: who is gone, and when to stop together.

All is said through the key-value store of JAX's coordinator, which process 0 holds. No device takes
part, so that one that waits in a collective for ever holds nothing up. A thread of every process
gives a sign of life and reads the news each second; process 0 misses those that fall silent, and
the others notice when process 0 no longer answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from bigr_jax.errors import UserError

BEAT = 1.0
# Rounds that a process gets to end by itself when another one has ended with an error.
_GRACE = 3
_POLL_MS = 5000
_ROOT = "bigr"
_WHO, _BEAT, _STOP = f"{_ROOT}/who/", f"{_ROOT}/beat/", f"{_ROOT}/stop/"
_NEWS = f"{_ROOT}/news/"


class Store:
    """The coordinator's key-value store, and what can be made of it: values of process 0 and
    meetings.

    client  of `jax.distributed`
    Every process calls `first` and `meet` in the same order.
    """

    def __init__(self, client: Any, index: int, count: int) -> None:
        self.client, self.index, self.count = client, index, count
        self._calls = 0

    def first(self, make: Callable[[], Any]) -> Any:
        """Returns what `make` gives on process 0, which JSON can hold."""
        key = self.name("first")
        if self.index == 0:
            self.put(key, json.dumps(make()))
        return json.loads(self.get(key))

    def meet(self) -> None:
        """Returns when all processes are here."""
        key = self.name("meet")
        if self.client.key_value_increment(key, 1) == self.count:
            self.put(f"{key}/all", "")
        self.get(f"{key}/all")

    def name(self, kind: str) -> str:
        """Returns a key that is new, and the same on all processes."""
        self._calls += 1
        return f"{_ROOT}/{kind}/{self._calls}"

    def put(self, key: str, value: str) -> None:
        """Sets a value."""
        self.client.key_value_set(key, value, allow_overwrite=True)

    def get(self, key: str) -> str:
        """Returns a value when it is there; a signal interrupts the waiting."""
        while True:
            try:
                return str(self.client.blocking_key_value_get(key, _POLL_MS))
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def below(self, prefix: str) -> dict[str, str]:
        """Returns the values whose keys begin with `prefix`, {rest of the key: value}."""
        found = self.client.key_value_dir_get(prefix)
        return {key.removeprefix(prefix): value for key, value in found}


class Team:
    """This process as one of several, from `start` to `part` or `fail`.

    patience  seconds without a sign of life after which a process is taken for dead
    """

    def __init__(self, store: Store, patience: float) -> None:
        self.store = store
        self.last_words: Callable[[], str] = lambda: "the same command starts again"
        self.stopped = False
        self._index, self._count = store.index, store.count
        self._rounds = max(2, round(patience / BEAT))
        self._names = {process: f"process {process}" for process in range(store.count)}
        self._leaving, self._ending = threading.Event(), threading.Lock()
        # Rounds since the coordinator answered, and since each process gave a sign of life.
        self._silence = 0
        self._quiet: dict[int, tuple[str, int]] = {}
        self._failed: dict[int, int] = {}
        self._asked = False
        self._decided = threading.Condition()
        self._checks, self._signum = 0, 0
        self._published, self._last = False, 0

    def start(self) -> None:
        """Learns who the others are and begins to watch over them."""
        own = f"process {self._index} (host {socket.gethostname()}, pid {os.getpid()})"
        self.store.put(f"{_WHO}{self._index}", own)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        if self._index:
            threading.Thread(target=self._alarm, name="alarm", daemon=True).start()
        self.store.meet()
        self._names |= {int(key): name for key, name in self.store.below(_WHO).items()}

    def name(self, process: int) -> str:
        """Returns "process 1 (host NAME, pid 17)"."""
        return self._names[process]

    def check(self, asked: Sequence[int]) -> int | None:
        """Returns the signal's number where all processes stop, at the same one of their checks.

        asked  the signals that this process was sent
        """
        if asked and not self._asked:
            self._asked = True
            self.store.put(f"{_NEWS}stop/", str(asked[0]))
        with self._decided:
            while self._published and not self._last:
                self._decided.wait()
            self._checks += 1
            self.stopped = bool(self._last) and self._checks >= self._last
            return self._signum if self.stopped else None

    def part(self) -> None:
        """Ends the watch when all processes have come to their end."""
        self.store.meet()
        self._leaving.set()

    def fail(self, error: BaseException, say: Callable[[BaseException], int]) -> NoReturn:
        """Ends this process, and by telling them the others, because of an error.

        say  prints the error and returns the exit status
        """
        own = isinstance(error, UserError | KeyboardInterrupt)
        if not own:
            self._look_for_the_cause()
        with self._ending:
            status = say(error)
            text = str(error) or type(error).__name__
            self._leave(status, {"text": text.splitlines()[0], "own": own})

    def end(self, line: str) -> NoReturn:
        """Prints why this process cannot go on and ends it, whatever its main thread waits for."""
        with self._ending:
            print(f"bigr: {line}", file=sys.stderr, flush=True)
            self._leave(1, {"text": line, "own": False})

    def coordinator_gone(self) -> None:
        """Ends this process if it still needed process 0, which held the coordinator."""
        if not self._leaving.is_set():
            self.end(self.lost(0))

    def lost(self, process: int) -> str:
        """Returns the line about a process that died."""
        words = "the same command goes on from the newest checkpoint"
        # They look at files, which may be gone as well.
        with contextlib.suppress(Exception):
            words = self.last_words()
        return f"{self._names[process]} is gone; {words}"

    def _look_for_the_cause(self) -> None:
        """Returns when all others are alive or have left: then an error is this process's own."""
        with contextlib.suppress(RuntimeError):
            before = self.store.below(_BEAT)
            while not self._leaving.wait(BEAT / 4):
                beats, left = self.store.below(_BEAT), self._left()
                for process, why in left.items():
                    if why["own"]:
                        self.end(f"{self._names[process]} ended: {why['text']}")
                alive = {int(key) for key, beat in beats.items() if beat != before.get(key)}
                if len(alive | left.keys() | {self._index}) == self._count:
                    return
        # Whoever holds the coordinator is gone, which the alarm tells.
        self._leaving.wait(2 * self._rounds * BEAT)

    def _left(self) -> dict[int, Any]:
        return {int(key): json.loads(why) for key, why in self.store.below(f"{_NEWS}left/").items()}

    def _leave(self, status: int, why: dict[str, Any]) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        # The coordinator may be what is gone.
        told = threading.Thread(target=self._tell, args=(why,), daemon=True)
        told.start()
        told.join(self._rounds * BEAT if self._index == 0 else 2 * BEAT)
        os._exit(status)

    def _tell(self, why: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):
            self.store.put(f"{_NEWS}left/{self._index}", json.dumps(why))
            news = self.store.below(_NEWS)
            # The news are lost with process 0, which therefore goes last.
            while self._index == 0 and _missing(news, self._count):
                self._leaving.wait(BEAT / 10)
                news = self.store.below(_NEWS)

    def _watch(self) -> None:
        beat = 0
        while not self._leaving.wait(BEAT / 10 if self._published and not self._last else BEAT):
            beat += 1
            try:
                self.store.put(f"{_BEAT}{self._index}", str(beat))
                self._hear(self.store.below(_NEWS))
                if self._index == 0:
                    self._listen(self.store.below(_BEAT))
            except RuntimeError:
                continue
            self._silence = 0

    def _alarm(self) -> None:
        # Rounds are counted, not seconds, since a machine may have been asleep.
        while not self._leaving.wait(BEAT):
            self._silence += 1
            if self._silence > self._rounds:
                self.end(self.lost(0))

    def _listen(self, beats: dict[str, str]) -> None:
        here = set(range(1, self._count)) - self._left().keys()
        for process in here:
            beat, (before, rounds) = beats.get(str(process), ""), self._quiet.get(process, ("", 0))
            self._quiet[process] = (beat, 0 if beat != before else rounds + 1)
        for process in here:
            if self._quiet[process][1] > self._rounds:
                self.store.put(f"{_NEWS}gone/{process}", "")
                self.end(self.lost(process))

    def _hear(self, news: dict[str, str]) -> None:
        for key, text in news.items():
            kind, _, who = key.partition("/")
            if kind == "gone":
                self.end(self.lost(int(who)))
            if kind == "stop":
                self._decide(int(text))
            if kind == "left":
                rounds = self._failed[int(who)] = self._failed.get(int(who), 0) + 1
                if rounds > _GRACE:
                    self.end(f"{self._names[int(who)]} ended: {json.loads(text)['text']}")

    def _decide(self, signum: int) -> None:
        """Agrees on the check at which all stop: the one after the last that any has passed.

        This thread does, since the main threads may wait for each other in a collective.
        """
        if self._last:
            return
        if not self._published:
            with self._decided:
                self._published, self._signum = True, signum
                self.store.put(f"{_STOP}{self._index}", str(self._checks))
        found = self.store.below(_STOP)
        if len(found) == self._count:
            with self._decided:
                self._last = max(map(int, found.values())) + 1
                self._decided.notify_all()


def _missing(news: dict[str, str], count: int) -> bool:
    away = {int(key.partition("/")[2]) for key in news if key.startswith(("left/", "gone/"))}
    return len(away | {0}) < count
