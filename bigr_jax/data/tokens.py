"""Sequences of tokens: recall of pairs, real text, and token files of one's own.

A batch holds "tokens" [n, length], and of tasks that ask something of their own "targets" [n,
length], the token that is asked for at a place, -1 where none is.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigr_jax import files
from bigr_jax.data.source import Info, Request
from bigr_jax.data.split import held_out
from bigr_jax.data.tokenizers import Tokenizer, learned
from bigr_jax.errors import UserError

# Of recall: so many keys, then so many values, then the token that asks.
KEYS, VALUES = 32, 32
RECALL_EXAMPLES = {"train": 65536, "test": 4096}
_TEST_SHARE = 0.1
_BYTES = 256


class TokenSource:
    """Sequences that lie in memory or in a memory-mapped file.

    columns  {"tokens": unsigned [N, length], "targets": int [N, length] where there are some}
    info     `num_classes` is the size of the vocabulary, `image_shape` (length,)

    Raises ValueError where the columns do not belong together.
    """

    def __init__(self, columns: dict[str, np.ndarray], info: Info) -> None:
        for name, column in columns.items():
            if column.dtype.kind not in "ui" or column.shape[1:] != info.image_shape:
                raise ValueError(f"{name} is {column.dtype} {column.shape}, not {info.image_shape}")
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("the columns have different lengths")
        self.info, self._columns = info, columns

    def __len__(self) -> int:
        return len(self._columns["tokens"])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {"tokens": int32 [n, length], and "targets" where there are some} of any n
        indices.
        """
        return {name: column[indices].astype(np.int32) for name, column in self._columns.items()}


def open_recall(request: Request) -> TokenSource:
    """Returns pairs of a key and a value, every pair twice, in any order; of each pair of twins one
    value is hidden, and asked for: `size` tokens, of which a quarter are keys that differ.

    The twin that shows the value stands before or after the one that asks, so that a model that
    reads in one direction sees it half the time.
    Source of the task: associative recall as in Zoology (arXiv 2312.04927), here two-sided.
    """
    pairs, rest = divmod(request.size, 4)
    if rest or not 1 <= pairs <= KEYS:
        raise UserError(
            f"data.size={request.size} does not hold pairs twice; legal: multiples of 4 up to "
            f"{4 * KEYS}"
        )
    count = RECALL_EXAMPLES[request.split]
    # Of NumPy's generators, the one whose numbers are promised to stay the same.
    random = np.random.RandomState(request.split == "test")
    keys = random.random_sample((count, KEYS)).argsort(axis=1)[:, :pairs]
    values = random.randint(KEYS, KEYS + VALUES, (count, pairs))
    hidden = random.randint(0, 2, (count, pairs))
    order = random.random_sample((count, 2 * pairs)).argsort(axis=1)
    keys, values = (np.take_along_axis(np.tile(x, 2), order, 1) for x in (keys, values))
    asked = np.take_along_axis(np.concatenate([hidden, 1 - hidden], axis=1) == 1, order, 1)
    mask = KEYS + VALUES
    tokens = np.stack([keys, np.where(asked, mask, values)], axis=-1).reshape(count, -1)
    none = np.full_like(keys, -1)
    targets = np.stack([none, np.where(asked, values, -1)], axis=-1).reshape(count, -1)
    info = Info("recall", mask + 1, (), (request.size,), "made here", "made from a seed")
    columns = {"tokens": tokens.astype(np.uint8), "targets": targets.astype(np.int8)}
    return TokenSource(columns, info)


def open_text(request: Request) -> TokenSource:
    """Returns texts in pieces of `size` tokens: `text:python` reads the standard library of the
    interpreter without its tests, `text:PATH` a file or all files below a folder.

    Tokens are bytes, or what `tokenizer` says; one beyond theirs is left to be the mask. The tenth
    of the files whose names hash lowest are the test part; of a single file its last tenth. Raises
    UserError where there is no text.
    """
    size, tokenizer = request.size, text_tokenizer(request)
    tokens = tokenizer.encode(_part(request, request.split))
    count = len(tokens) // size
    if not count:
        where, kind = request.argument, "bytes" if tokenizer.size == _BYTES else "tokens"
        raise UserError(
            f"the {request.split} part of {where} has {len(tokens)} {kind}, under {size}"
        )
    columns = {"tokens": tokens[: count * size].reshape(count, size)}
    name = request.argument
    licence = "PSF-2.0" if name == "python" else "unknown"
    info = Info(request.source, tokenizer.size + 1, (), (size,), licence, name)
    return TokenSource(columns, info)


def text_tokenizer(request: Request) -> Tokenizer:
    """Returns the tokenizer of a text, learned from its training part where it is learned.

    Raises UserError where there is no text, or no such tokenizer.
    """
    learns = request.tokenizer.startswith("bpe")
    return learned(request.tokenizer, _part(request, "train") if learns else b"")


def _part(request: Request, split: str) -> bytes:
    name = request.argument
    root = Path(sysconfig.get_path("stdlib") if name == "python" else name).expanduser()
    paths = sorted(_modules(root) if name == "python" else _readable(root))
    if not paths:
        raise UserError(f"data.source={request.source!r}: there is no text at {root}")
    if len(paths) == 1:
        whole = paths[0].read_bytes()
        border = int(len(whole) * (1 - _TEST_SHARE))
        return whole[border:] if split == "test" else whole[:border]
    names = [path.relative_to(root).as_posix() for path in paths]
    test = held_out(np.zeros(len(names), int), names, _TEST_SHARE)
    wanted = test if split == "test" else ~test
    return b"\n".join(path.read_bytes() for path, mine in zip(paths, wanted, strict=True) if mine)


def open_tokens(request: Request) -> TokenSource:
    """Returns the sequences of a folder, `tokens:FOLDER`: train.npy and test.npy, unsigned [N,
    size], read from the disk as they are needed, and tokens.json, {"vocabulary": its size}.

    Raises UserError where a file is missing or not of this form.
    """
    folder = Path(request.argument).expanduser()
    said: Any = files.read_json(str(folder / "tokens.json")) or {}
    if not isinstance(said.get("vocabulary"), int):
        raise UserError(f"{folder / 'tokens.json'} does not tell the size of the vocabulary")
    path = folder / f"{request.split}.npy"
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if tokens.dtype.kind not in "ui" or tokens.ndim != 2 or tokens.shape[1] != request.size:
        raise UserError(
            f"{path} is {tokens.dtype} {tokens.shape}, expected unsigned [N, data.size="
            f"{request.size}]"
        )
    info = Info(folder.name, said["vocabulary"], (), (request.size,), "unknown", str(folder))
    return TokenSource({"tokens": tokens}, info)


def _modules(root: Path) -> Iterator[Path]:
    """The standard library's own modules: neither tests nor what was installed beside it."""
    left_out = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
    for path in root.rglob("*.py"):
        if not left_out.intersection(path.relative_to(root).parts):
            yield path


def _readable(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    else:
        yield from (path for path in root.rglob("*") if path.is_file())
