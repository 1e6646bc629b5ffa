"""Sentences of GLUE's files cut into pieces, and Python sources by package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigr_jax.data.opening import open_source
from bigr_jax.data.sentences import PACKAGES
from bigr_jax.data.source import Source
from bigr_jax.data.wordpiece import WordPiece, words
from bigr_jax.errors import UserError

PIECES = "[PAD] [UNK] [CLS] [SEP] the cat sat un ##want ##ed ##able , . $ eleve 中 ! ' s run ##ning"
NUMBERS = {piece: number for number, piece in enumerate(PIECES.split())}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES.split()) + "\n", "utf-8")
    return path


def opened(folder: Path, vocabulary: Path, size: int = 12, split: str = "train") -> Source:
    section = {"source": f"glue:{folder}", "size": size, "channels": 0}
    return open_source({**section, "tokenizer": f"wordpiece:{vocabulary}"}, split)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The CAT sat.", "the cat sat ."),
        ("unwanted, unable", "un ##want ##ed , un ##able"),
        ("$the!cat's", "$ the ! cat ' s"),
        # A word of which no beginning is a piece is unknown, all of it; accents do not count.
        ("dog unwantedly élevé", "[UNK] [UNK] eleve"),
        # Every Chinese character is a word, a control character is none.
        ("cat中中sat\x00\u200b running", "cat 中 中 sat run ##ning"),
        (f"{'un' * 51} cat", "[UNK] cat"),
        (" \t\n", ""),
    ],
)
def test_words_are_cut_into_the_longest_pieces(vocabulary: Path, text: str, wanted: str) -> None:
    found = WordPiece(vocabulary).encode(text)
    assert found == [NUMBERS[piece] for piece in wanted.split()]


def test_marks_are_words() -> None:
    assert list(words("a-b «c»… 1.5")) == ["a", "-", "b", "«", "c", "»", "…", "1", ".", "5"]


def test_a_piece_that_ends_a_line_elsewhere_is_one(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), "utf-8")
    found = WordPiece(tmp_path / "vocab.txt")
    assert found.size == 7 and found.encode("cat") == [6]


@pytest.mark.parametrize(("text", "named"), [("the\ncat\n", "[PAD]"), (None, "cannot be read")])
def test_a_file_that_is_no_vocabulary(tmp_path: Path, text: str | None, named: str) -> None:
    if text is not None:
        (tmp_path / "vocab.txt").write_text(text)
    with pytest.raises(UserError) as raised:
        WordPiece(tmp_path / "vocab.txt")
    assert named in str(raised.value)


# The heads of the files of GLUE, and a line of each.
FILES = {
    "SST-2": ("sentence\tlabel", "the cat\t1", ["the cat"], "1"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tthe cat\tsat\tentailment", ["the cat", "sat"],
            "entailment"),
    "QNLI": ("index\tquestion\tsentence\tlabel", "7\tcat\tthe\tnot_entailment", ["cat", "the"],
             "not_entailment"),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tcat\tsat\t0",
            ["cat", "sat"], "0"),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t8\t9\tcat "the\tsat', ["cat the",
             "sat"], "1"),
    "MNLI": ("index\tpromptID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
             "0\t1\t( cat )\tcat\tsat\tx\tneutral", ["cat", "sat"], "neutral"),
    "CoLA": (None, "gj04\t1\t\tthe cat sat.", ["the cat sat ."], "1"),
}  # fmt: skip


@pytest.mark.parametrize("task", FILES)
def test_every_file_of_glue_is_read(tmp_path: Path, vocabulary: Path, task: str) -> None:
    head, line, texts, label = FILES[task]
    whole = "\n".join(filter(None, [head, line])) + "\n"
    (tmp_path / "train.tsv").write_text(whole)
    test = "dev_matched.tsv" if task == "MNLI" else "dev.tsv"
    (tmp_path / test).write_text(whole)
    for split in ("train", "test"):
        source = opened(tmp_path, vocabulary, split=split)
        assert source.info.class_names == (label,) and source.info.num_classes == len(NUMBERS)
        row = {name: column[0] for name, column in source.gather(np.arange(1)).items()}
        pieces, types = ["[CLS]"], [0]
        for kind, text in enumerate(texts):
            # The mark in MRPC's line opens no quotation; it is unknown here.
            cut = text.replace("cat the", "cat [UNK] the").split()
            pieces += [*cut, "[SEP]"]
            types += [kind] * (len(cut) + 1)
        rest = 12 - len(pieces)
        assert row["tokens"].tolist() == [NUMBERS[piece] for piece in pieces] + [0] * rest
        assert row["types"].tolist() == types + [0] * rest
        assert row["label"] == 0 and row["label"].dtype == np.int32


def test_scores_are_numbers_and_the_longer_sentence_is_cut(tmp_path, vocabulary) -> None:
    head = "index\tsentence1\tsentence2\tscore\n"
    lines = ["0\tthe cat sat . the cat\tthe cat\t3.800", "1\tcat\tthe the the the the the\t0"]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(head + "\n".join(lines))
    rows = opened(tmp_path, vocabulary, size=8).gather(np.arange(2))
    assert rows["label"].dtype == np.float32 and rows["label"].tolist() == [np.float32(3.8), 0.0]
    wanted = ["[CLS] the cat sat [SEP] the cat [SEP]", "[CLS] cat [SEP] the the the the [SEP]"]
    for tokens, text in zip(rows["tokens"], wanted, strict=True):
        assert tokens.tolist() == [NUMBERS[piece] for piece in text.split()]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train.tsv": None}, "has no train.tsv"),
        ({"train.tsv": "text\tclass\ncat\t1\n"}, "has the columns ['text', 'class']"),
        ({"train.tsv": "sentence\tlabel\ncat\n"}, "1 of 1 lines lack columns"),
        ({"train.tsv": "sentence\tscore\ncat\thigh\n"}, "'high'"),
        ({"dev.tsv": "sentence\tlabel\ncat\t2\n"}, "labels ['2'] are not among those of training"),
        ({"size": 3}, "data.size=3"),
        ({"labels": 2}, "data.labels=2, but glue:"),
        ({"tokenizer": "bytes"}, "data.tokenizer='bytes'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, vocabulary: Path, changes, named: str) -> None:
    lines = {"train.tsv": "sentence\tlabel\ncat\t1\n", "dev.tsv": "sentence\tlabel\ncat\t1\n"}
    for name, text in {**lines, **changes}.items():
        if name in lines and text is not None:
            (tmp_path / name).write_text(text)
    section = {"source": f"glue:{tmp_path}", "size": changes.get("size", 8), "channels": 0}
    section["tokenizer"] = changes.get("tokenizer", f"wordpiece:{vocabulary}")
    section["labels"] = changes.get("labels", 0)
    with pytest.raises(UserError) as raised:
        for split in ("train", "test"):
            open_source(section, split)
    assert named in str(raised.value)


def test_no_file_of_a_package_is_in_both_parts() -> None:
    parts = {}
    for split in ("train", "test"):
        source = open_source({"source": "packages", "size": 64, "channels": 0}, split)
        rows = source.gather(np.arange(len(source)))
        assert rows["tokens"].shape == (len(source), 64) and rows["tokens"].max() < 256
        assert np.unique(rows["label"]).tolist() == list(range(len(PACKAGES)))
        assert not rows["types"].any() and source.info.num_classes == 257
        parts[split] = {bytes(row.astype(np.uint8)) for row in rows["tokens"]}
    shared = len(parts["train"] & parts["test"]) / len(parts["test"])
    # Lines of licences and of spaces are in many files.
    assert shared < 0.05 and len(parts["test"]) > 1000
