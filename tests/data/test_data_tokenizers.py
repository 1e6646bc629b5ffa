from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data.opening import open_source, tokenizer_of
from bigr_jax.data.tokenizers import BPE, Bytes, learned
from bigr_jax.errors import UserError

TEXT = b"def read(self, path):\n    return self.path.read(path)\n\n\n" * 40
BPE_TOKENS = BPE(TEXT, 300)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=40) | st.text(alphabet=" \n\tdefrat\x85\x0b(", max_size=30).map(str.encode)
)
def test_any_bytes_come_back(text: bytes) -> None:
    for tokenizer in (Bytes(), BPE_TOKENS):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokens.size == 0 or tokens.max() < tokenizer.size


def test_frequent_pairs_are_one_token_and_a_line_break_is_its_own() -> None:
    assert BPE_TOKENS.size == 300
    assert len(BPE_TOKENS.encode(TEXT)) < len(TEXT) / 2
    (line,) = BPE_TOKENS.encode(b"\n")
    assert (BPE_TOKENS.encode(TEXT) == line).sum() == TEXT.count(b"\n")
    assert BPE_TOKENS.encode(b"path")[0] == BPE(TEXT, 300).encode(b"path")[0]


def test_what_is_no_tokenizer_is_refused() -> None:
    for spec, said in [
        ("words", "data.tokenizer='words'; legal: bytes, bpe:SIZE"),
        ("bpe:many", "legal: bytes, bpe:SIZE"),
        ("bpe:100", "a vocabulary of 100 tokens; legal: above 258, up to 65536"),
        ("bpe:5000", "bytes of text do not give 5000 tokens"),
    ]:
        with pytest.raises(UserError, match=said):
            learned(spec, TEXT)


def test_a_text_of_learned_tokens(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.py").write_bytes(TEXT + b"%d\n" % number)
    section = {"source": f"text:{tmp_path}", "size": 8, "channels": 0, "tokenizer": "bpe:310"}
    tokenizer = tokenizer_of(section)
    for split in ("train", "test"):
        source = open_source(section, split)
        assert source.info.num_classes == 311
        rows = source.gather(np.arange(len(source)))["tokens"]
        assert rows.shape[1] == 8 and rows.max() < 310
        assert tokenizer.decode(rows.reshape(-1)).startswith(TEXT)
    with pytest.raises(UserError, match=r"the test part of .* tokens, under 100000"):
        open_source({**section, "size": 100_000}, "test")
