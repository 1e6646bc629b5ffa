"""Logs of who took what and when, as sequences of items, of which the last two are held out.

Items are numbered from 1, the most frequent first; 0 fills up on the left, and the number after the
last item is left to hide one. Of every user the last item is the question of the test, the one
before it that of the validation, and neither is ever trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigr_jax.data.cards import CARDS, require
from bigr_jax.data.made_interactions import made
from bigr_jax.data.source import Info, Request
from bigr_jax.errors import UserError

PADDING = 0
# What a row is of.
TRAIN, VALIDATION, TEST = range(3)
# One item to train on, and two that are asked for.
SHORTEST = 3
_DELIMITERS = ("\t", "::", ",")


class Log(NamedTuple):
    """Sequences of items, one after another.

    items   int32 [events], from 1
    starts  int64 [users + 1]: the events of user u are starts[u] to starts[u + 1]
    names   of the items 1, 2, ...
    """

    items: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]


class InteractionSource:
    """Windows of sequences, filled up on the left.

    Of "train" they are of all but the last two items of each user, the last window at their end and
    one more every `stride` * size items before it; of "test" there are two of every user, which end
    with the item of the validation and with that of the test.
    """

    def __init__(self, log: Log, split: str, size: int, stride: float, info: Info) -> None:
        self.info, self.log, self._size = info, log, size
        stops, users = log.starts[1:], np.arange(len(log.starts) - 1)
        if split == "train":
            trained = np.diff(log.starts) - (SHORTEST - 1)
            begins = [window_starts(n, size, max(1, int(stride * size))) for n in trained.tolist()]
            user = np.repeat(users, [len(found) for found in begins])
            begin = log.starts[user] + np.concatenate(begins)
            end = np.minimum(begin + size, stops[user] - 2)
            part, known = np.full(len(user), TRAIN), stops[user] - 2
        else:
            user = np.tile(users, 2)
            part = np.repeat([VALIDATION, TEST], len(users))
            end = stops[user] - (part == VALIDATION)
            begin, known = np.maximum(log.starts[user], end - size), end - 1
        self._begin, self._end, self._known = begin, end, known
        self._first, self._part = log.starts[user], part.astype(np.int32)

    def __len__(self) -> int:
        return len(self._part)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of any n rows.

        tokens  int32 [n, size], the window; of what is not trained on the last is asked for
        seen    uint8 [n, ceil(num_classes / 8)], what the user has had: in training all that is
                trained on, else all before the item asked for; as `numpy.packbits` has it
        part    int32 [n]: TRAIN, VALIDATION or TEST
        """
        places = self._end[indices][:, None] + np.arange(-self._size, 0)
        there = places >= self._begin[indices][:, None]
        tokens = np.where(there, self.log.items[np.maximum(places, 0)], PADDING)
        seen = np.zeros((len(indices), self.info.num_classes), bool)
        spans = zip(self._first[indices], self._known[indices], strict=True)
        for row, (first, last) in zip(seen, spans, strict=True):
            row[self.log.items[first:last]] = True
        bits = np.packbits(seen, axis=1)
        return {"tokens": tokens.astype(np.int32), "seen": bits, "part": self._part[indices]}

    def sequences(self) -> Iterator[np.ndarray]:
        """Yields of each user the items that are trained on."""
        return (
            self.log.items[start : stop - 2]
            for start, stop in zip(self.log.starts[:-1], self.log.starts[1:], strict=True)
        )

    def counts(self) -> np.ndarray:
        """Returns how often each item is trained on, int64 [num_classes]."""
        return _trained_counts(self.log, self.info.num_classes)


def open_interactions(request: Request) -> InteractionSource:
    """Returns the windows of a log, `size` items each: `interactions:ml-100k` are the 100,000
    ratings of MovieLens as the package recbole holds them, all taken as interactions,
    `interactions:made` sequences of a known law (`data.made_interactions`), `interactions:PATH` a
    file of one's own (`read`).

    Raises UserError where there is no such log, or `size` or `stride` is not legal.
    """
    if request.size < 2:
        raise UserError(f"data.size={request.size} leaves no item before another; legal: from 2")
    if not 0 < request.stride <= 1:
        raise UserError(f"data.stride={request.stride} is not a share of a window; legal: (0, 1]")
    log, licence, origin = _log(request.argument)
    names = ("<padding>", *log.names, "<mask>")
    info = Info(request.source, len(names), names, (request.size,), licence, origin)
    return InteractionSource(log, request.split, request.size, request.stride, info)


def read(path: Path) -> Log:
    """Returns the log of a text file: a line per interaction, of which user, item and time stand
    between tabs, commas or "::".

    Where the first line names them, columns are found by the names that begin with "user", "item"
    and "time"; else they are the first, the second and the last. Times are numbers; at one time the
    order of the lines holds. Users of fewer than 3 interactions are left out.
    Raises UserError, naming the line, where the file is not of this form.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    mark = next((mark for mark in _DELIMITERS if lines and mark in lines[0]), None)
    if mark is None:
        raise UserError(f"{path} does not begin with user, item and time between tabs or commas")
    head = [name.strip().lower() for name in lines[0].split(mark)]
    named = not _is_number(head[-1])
    places = _columns(path, head, named)
    users: list[str] = []
    items: list[str] = []
    times: list[float] = []
    for number, line in enumerate(lines[named:], 1 + named):
        if not line.strip():
            continue
        fields = line.split(mark)
        if len(fields) <= max(places) or not _is_number(fields[places[2]]):
            raise UserError(f"{path}, line {number}: {line!r} holds no user, item and time")
        users.append(fields[places[0]].strip())
        items.append(fields[places[1]].strip())
        times.append(float(fields[places[2]]))
    if not users:
        raise UserError(f"{path} holds no interactions")
    return from_events(users, items, np.asarray(times), str(path))


def from_events(users: Sequence[str], items: Sequence[str], times: np.ndarray, origin: str) -> Log:
    """Returns the log of interactions in any order, numbered by frequency in what is trained on.

    Raises UserError, naming `origin`, where no user has 3 of them.
    """
    _, user = _numbered(users)
    names, item = _numbered(items)
    # Stable: at one time the order of the file holds. By number, an item's number would tell when
    # it was taken.
    order = np.lexsort((times, user))
    user, item = user[order], item[order]
    long = np.bincount(user) >= SHORTEST
    user, item = user[long[user]], item[long[user]]
    if not len(user):
        raise UserError(f"{origin}: no user has {SHORTEST} interactions or more")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1, [len(user)]])
    there, item = np.unique(item, return_inverse=True)
    raw = Log(item.astype(np.int32), starts, ())
    frequent = np.argsort(-_trained_counts(raw, len(there)), kind="stable")
    number = np.empty(len(there), np.int32)
    number[frequent] = np.arange(1, len(there) + 1)
    return Log(number[item], starts, tuple(str(names[i]) for i in there[frequent]))


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Returns where the windows of a sequence begin: the last ends with it, each of the others
    stands `step` before the next, and the first begins with it.

    Source: BERT4Rec's published code, which cuts sequences the same way.
    """
    return [0, *range(length - size, 0, -step)[::-1]]


@functools.lru_cache(maxsize=4)
def _cached(path: Path, changed: int) -> Log:
    return read(path)


def _log(name: str) -> tuple[Log, str, str]:
    if name == "made":
        users, items, times = made().events()
        return from_events(users, items, times, name), "made here", "made from a seed"
    if name == "ml-100k":
        card, root = CARDS[name], require(name)
        events, titles = (root / file for file in card.files)
        log = _cached(events, events.stat().st_mtime_ns)
        known = dict(map(_title, titles.read_text("utf-8").splitlines()[1:]))
        return log._replace(names=tuple(map(known.__getitem__, log.names))), *card[3:5]
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"data.source='interactions:{name}': there is no file {path}; legal: ml-100k, made, "
            "or the path of a log"
        )
    return _cached(path, path.stat().st_mtime_ns), "unknown", str(path)


def _title(line: str) -> tuple[str, str]:
    item, title, year, *_ = line.split("\t")
    return item, f"{title} ({year})" if year else title


def _columns(path: Path, head: list[str], named: bool) -> tuple[int, int, int]:
    if not named:
        if len(head) < SHORTEST:
            raise UserError(f"{path}: {len(head)} columns are not user, item and time")
        return 0, 1, len(head) - 1
    found = []
    for wanted in ("user", "item", "time"):
        places = [place for place, name in enumerate(head) if name.startswith(wanted)]
        if not places:
            raise UserError(f"{path}: no column of {', '.join(head)} begins with {wanted!r}")
        found.append(places[0])
    return found[0], found[1], found[2]


def _numbered(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    column = np.asarray(names)
    # Of numbers 9 comes before 10.
    if all(name.isdecimal() and len(name) < 18 for name in names):
        column = column.astype(np.int64)
    return np.unique(column, return_inverse=True)


def _trained_counts(log: Log, most: int) -> np.ndarray:
    trained = np.ones(len(log.items), bool)
    trained[log.starts[1:] - 1] = trained[log.starts[1:] - 2] = False
    return np.bincount(log.items[trained], minlength=most)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
