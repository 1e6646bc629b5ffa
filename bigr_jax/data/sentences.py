"""Sentences and pairs of them with a label each: the tasks of GLUE, and Python sources by package.

A batch holds "tokens" int32 [n, length], "types" int32 [n, length], 1 within the second sentence,
and "label", int32 [n] a class or float32 [n] a score.
"""

from __future__ import annotations

import csv
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigr_jax import progress
from bigr_jax.data.source import Info, Request
from bigr_jax.data.split import held_out
from bigr_jax.data.wordpiece import BETWEEN, FIRST, PADDING, WordPiece
from bigr_jax.errors import UserError

# Names of columns: what is read, in the order of the file, and what is told, of which a score is a
# number on a scale.
TEXTS = ("sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String",
         "#2 String")  # fmt: skip
LABELS = ("label", "gold_label", "is_duplicate", "Quality", "score")
SCORE = "score"
# CoLA's files have no names of columns, and these places.
_BARE_TEXT, _BARE_LABEL, _BARE = 3, 1, 4
FILES = {"train": ("train.tsv",), "test": ("dev.tsv", "dev_matched.tsv")}
WORDPIECE = "wordpiece:"
# More lines that lack columns are no accident.
_RAGGED_SHARE = 0.01
PACKAGES = ("asyncio", "email", "http", "importlib", "multiprocessing", "unittest", "urllib", "xml")
_TEST_SHARE = 0.25
_BYTES = 256


class SentenceSource:
    """Sentences that lie in memory.

    columns  {"tokens": int [N, length], "types": int [N, length], "label": int or float [N]}
    info     `num_classes` is the size of the vocabulary, `class_names` are those of the labels, ()
             where they are scores
    """

    def __init__(self, columns: dict[str, np.ndarray], info: Info) -> None:
        self.info, self._columns = info, columns

    def __len__(self) -> int:
        return len(self._columns["label"])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of any n indices, of types int32 and float32."""
        found = {name: column[indices] for name, column in self._columns.items()}
        return {
            name: rows.astype(np.float32 if rows.dtype.kind == "f" else np.int32)
            for name, rows in found.items()
        }


def open_glue(request: Request) -> SentenceSource:
    """Returns the sentences of a folder of GLUE, `glue:FOLDER`, with train.tsv and dev.tsv (of MNLI
    dev_matched.tsv), as [CLS] one [SEP] or [CLS] one [SEP] other [SEP].

    `tokenizer` names the vocabulary, "wordpiece:vocab.txt". Columns are known by their names, those
    of all eight tasks of GLUE; classes are the different labels of the training part in order. The
    longer sentence is cut where a row is longer than `size`. Raises UserError for a file that is
    missing or has other columns, a label that training does not have, and other than `labels` of
    them.
    """
    if not request.tokenizer.startswith(WORDPIECE):
        raise UserError(
            f"data.tokenizer={request.tokenizer!r} does not read sentences; legal: "
            f"{WORDPIECE}PATH, of BERT's vocab.txt"
        )
    if request.size < 4:
        raise UserError(f"data.size={request.size} does not hold a pair; legal: 4 or more")
    pieces = WordPiece(request.tokenizer.removeprefix(WORDPIECE))
    folder = Path(request.argument).expanduser()
    texts, labels, scored = _table(_file(folder, request.split))
    names: tuple[str, ...] = ()
    if scored:
        told = _numbers(labels, folder)
    else:
        known = labels if request.split == "train" else _table(_file(folder, "train"))[1]
        names = tuple(sorted(set(known)))
        if strange := sorted(set(labels) - set(names)):
            raise UserError(f"{folder}: labels {strange} are not among those of training, {names}")
        told = np.array([names.index(label) for label in labels], np.int32)
    _check_labels(request, names)
    with progress.slow(f"cutting {len(texts):,} sentences into pieces"):
        tokens, types = _rows(texts, pieces, request.size)
    info = Info(folder.name, pieces.size, names, (request.size,), "unknown", str(folder))
    return SentenceSource({"tokens": tokens, "types": types, "label": told}, info)


def open_packages(request: Request) -> SentenceSource:
    """Returns pieces of `size` bytes of the standard library's sources, each with the package that
    it is of, one of `PACKAGES`.

    The quarter of every package's files whose names hash lowest is the test part: no file is in
    both. The vocabulary is that of `text:python`, the bytes and a mask. Raises UserError where the
    library has no sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for name in PACKAGES for path in sorted((root / name).rglob("*.py"))]
    if not paths:
        raise UserError(f"data.source={request.source!r}: there are no sources at {root}")
    names = [path.relative_to(root).as_posix() for path in paths]
    labels = np.array([PACKAGES.index(name.partition("/")[0]) for name in names])
    wanted = held_out(labels, names, _TEST_SHARE) == (request.split == "test")
    rows, told = [], []
    for path, number in zip(np.array(paths)[wanted], labels[wanted], strict=True):
        found = np.frombuffer(path.read_bytes(), np.uint8)
        count = len(found) // request.size
        rows.append(found[: count * request.size].reshape(count, request.size))
        told += [number] * count
    tokens = np.concatenate(rows)
    _check_labels(request, PACKAGES)
    info = Info("packages", _BYTES + 1, PACKAGES, (request.size,), "PSF-2.0", "python")
    label = np.array(told, np.int32)
    return SentenceSource({"tokens": tokens, "types": np.zeros_like(tokens), "label": label}, info)


def _file(folder: Path, split: str) -> Path:
    for name in FILES[split]:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has no {' or '.join(FILES[split])}, as a task of GLUE has")


def _table(path: Path) -> tuple[list[list[str]], list[str], bool]:
    """Returns of every line its texts and its label, and whether that is a score."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    head = lines[0] if lines else []
    texts = [place for place, name in enumerate(head) if name in TEXTS]
    labels = [place for place, name in enumerate(head) if name in LABELS]
    if not texts and not labels and len(head) == _BARE:
        texts, labels = [_BARE_TEXT], [_BARE_LABEL]
    else:
        lines = lines[1:]
    if len(labels) != 1 or not 1 <= len(texts) <= 2:
        raise UserError(
            f"{path} has the columns {head}; wanted one of {', '.join(LABELS)}, and one or two of "
            f"{', '.join(TEXTS)}"
        )
    whole = [line for line in lines if len(line) > max(*texts, *labels)]
    if len(lines) - len(whole) > _RAGGED_SHARE * len(lines) or not whole:
        raise UserError(f"{path}: {len(lines) - len(whole)} of {len(lines)} lines lack columns")
    found = [[line[place] for place in texts] for line in whole]
    scored = head[labels[0]] == SCORE
    return found, [line[labels[0]] for line in whole], scored


def _numbers(labels: Sequence[str], folder: Path) -> np.ndarray:
    try:
        return np.array([float(label) for label in labels], np.float32)
    except ValueError as error:
        raise UserError(f"{folder}: a score is none: {error}") from None


def _check_labels(request: Request, names: Sequence[str]) -> None:
    found = len(names) or 1
    if request.labels not in (0, found):
        said = ", ".join(names) or "a score"
        raise UserError(
            f"data.labels={request.labels}, but {request.source} has {found} ({said}); 1 is a score"
        )


def _rows(texts: list[list[str]], pieces: WordPiece, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and types of all rows, filled up to `size`: uint16 or uint32, and uint8."""
    kind = np.uint16 if pieces.size <= 1 << 16 else np.uint32
    tokens = np.full((len(texts), size), pieces[PADDING], kind)
    types = np.zeros((len(texts), size), np.uint8)
    for row, pair in enumerate(texts):
        cut = [pieces.encode(text) for text in pair]
        while sum(map(len, cut)) + len(cut) + 1 > size:
            max(cut, key=len).pop()
        whole = [pieces[FIRST]]
        for number, text in enumerate(cut):
            begin = len(whole) if number else 0
            whole += [*text, pieces[BETWEEN]]
            types[row, begin : len(whole)] = number
        tokens[row, : len(whole)] = whole
    return tokens, types
