"""From the bytes of a text to tokens, and back without loss."""

from __future__ import annotations

import functools
import io
from typing import Protocol

import numpy as np
import sentencepiece

from bigr_jax.errors import UserError

# Bytes of text from which pairs are learned, and those that are encoded at a time.
_LEARNED, _PIECE = 2_000_000, 1_000_000
# A token for each byte, the line break, and what is never met.
_LEAST = 256 + 2
_MOST = 1 << 16


class Tokenizer(Protocol):
    """A vocabulary of `size` tokens; a line break is one token of its own."""

    @property
    def size(self) -> int:
        """The number of tokens."""

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the tokens of a text, uint16 or uint8 [n]."""

    def decode(self, tokens: np.ndarray) -> bytes:
        """Returns the text of int tokens [n]."""


class Bytes:
    """Every byte is a token."""

    size = 256

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the bytes, uint8 [n]."""
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: np.ndarray) -> bytes:
        """Returns the text."""
        return np.asarray(tokens).astype(np.uint8).tobytes()


class BPE:
    """Pairs that are frequent in a text are merged, within words and runs of spaces, until there
    are `size` tokens; a byte that was not met is a token, too.

    Source: Sennrich et al. (arXiv 1508.07909), by SentencePiece. Raises UserError where the text
    has too few pairs, or the size is out of range.
    """

    def __init__(self, text: bytes, size: int) -> None:
        if not _LEAST < size <= _MOST:
            raise UserError(f"a vocabulary of {size} tokens; legal: above {_LEAST}, up to {_MOST}")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                # Each byte as the letter of its number: any file is a text, without loss.
                sentence_iterator=iter(text[:_LEARNED].decode("latin-1").split("\n")),
                model_writer=model,
                vocab_size=size,
                model_type="bpe",
                byte_fallback=True,
                character_coverage=1.0,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n"],
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
                num_threads=1,
            )
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{len(text)} bytes of text do not give {size} tokens: {error}"
            ) from None
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    @property
    def size(self) -> int:
        """The number of tokens."""
        return int(self._model.get_piece_size())

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the tokens, uint16 [n]."""
        lines = text.decode("latin-1").splitlines(keepends=True)
        return np.concatenate(
            [np.zeros(0, np.uint16)]
            + [np.asarray(tokens, np.uint16) for tokens in self._model.encode(lines)]
        )

    def decode(self, tokens: np.ndarray) -> bytes:
        """Returns the text."""
        return str(self._model.decode(np.asarray(tokens).tolist())).encode("latin-1", "replace")


@functools.lru_cache(maxsize=4)
def learned(spec: str, text: bytes) -> Tokenizer:
    """Returns the tokenizer that `data.tokenizer` names: "bytes", also where it is "", or
    "bpe:SIZE", learned from a text.

    Raises UserError for another name.
    """
    name, _, size = spec.partition(":")
    if spec in ("", "bytes"):
        return Bytes()
    if name == "bpe" and size.isdecimal():
        return BPE(text, int(size))
    raise UserError(f"data.tokenizer={spec!r}; legal: bytes, bpe:SIZE")
