"""Words cut into pieces of a given vocabulary, as BERT reads text.

Source: BERT (arXiv 1810.04805), section 3.2, whose uncased vocabulary has a piece a line.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from bigr_jax.errors import UserError

UNKNOWN, FIRST, BETWEEN, PADDING = "[UNK]", "[CLS]", "[SEP]", "[PAD]"
# A longer word is unknown.
_LONGEST = 100
# Chinese characters, of which each is a word: first and last of each block.
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """Text without case and accents, cut at spaces and punctuation, each word into the longest
    pieces from its beginning.

    path  a file with a piece a line; those within a word begin with ##

    Raises UserError where it cannot be read or lacks one of [PAD], [UNK], [CLS] and [SEP].
    """

    def __init__(self, path: str | Path) -> None:
        try:
            text = Path(path).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"vocabulary {path} cannot be read: {error}") from None
        # Not by `splitlines`: some pieces are letters that it takes for the end of a line.
        lines = text.removesuffix("\n").split("\n")
        self._pieces = {piece: number for number, piece in enumerate(lines)}
        self.size = len(lines)
        missing = [name for name in (PADDING, UNKNOWN, FIRST, BETWEEN) if name not in self._pieces]
        if missing:
            raise UserError(f"vocabulary {path} has no {', '.join(missing)}: it is none of BERT's")
        self._cut = functools.lru_cache(maxsize=1 << 16)(self._word)

    def __getitem__(self, piece: str) -> int:
        return self._pieces[piece]

    def encode(self, text: str) -> list[int]:
        """Returns the numbers of the pieces of a text."""
        return [number for word in words(text) for number in self._cut(word)]

    def _word(self, word: str) -> tuple[int, ...]:
        if len(word) > _LONGEST:
            return (self._pieces[UNKNOWN],)
        found: list[int] = []
        begin = 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                number = self._pieces.get(("##" if begin else "") + word[begin:end])
                if number is not None:
                    break
            else:
                return (self._pieces[UNKNOWN],)
            found.append(number)
            begin = end
        return tuple(found)


def words(text: str) -> Iterator[str]:
    """Yields the words of a text, and each mark of punctuation as one of its own."""
    plain = "".join(_spaced(letter) for letter in text)
    for word in plain.split():
        bare = unicodedata.normalize("NFD", word.lower())
        letters: list[str] = []
        for letter in bare:
            if unicodedata.category(letter) == "Mn":
                continue
            if not _is_mark(letter):
                letters.append(letter)
                continue
            if letters:
                yield "".join(letters)
            yield letter
            letters = []
        if letters:
            yield "".join(letters)


def _spaced(letter: str) -> str:
    if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
        return " "
    if letter in "\0\ufffd" or unicodedata.category(letter)[0] == "C":
        return ""
    number = ord(letter)
    return f" {letter} " if any(low <= number <= high for low, high in _CHINESE) else letter


def _is_mark(letter: str) -> bool:
    # Of ASCII all that is neither letter, digit nor space, such as $ and +.
    if letter.isascii():
        return letter.isprintable() and not letter.isalnum() and letter != " "
    return unicodedata.category(letter)[0] == "P"
