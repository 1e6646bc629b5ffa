from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.metrics.text import distinct, ngrams, oracle_bleu, self_bleu, sentence_bleu

TEXTS = st.lists(st.integers(0, 3), max_size=9)


def test_bleu_by_hand():
    text, reference = ["a", "b", "c", "d", "e"], ["a", "b", "c", "x", "e", "f"]
    # Runs of one: 4 of 5; of two: 2 + 1 of 4 + 1; of three: 1 + 1 of 3 + 1; of four: 0 + 1 of 3.
    wanted = (4 / 5 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25 * math.exp(1 - 6 / 5)
    assert sentence_bleu(text, [reference]) == pytest.approx(wanted)


def test_a_run_counts_as_often_as_one_reference_has_it():
    # Papineni et al., example 2: of seven "the", two are matched.
    text, other = ["the"] * 7, ["a", "cat", "on", "the", "mat"]
    references = [["the", "cat", "is", "on", "the", "mat"], other]
    assert sentence_bleu(text, references, 1) == pytest.approx(2 / 7)


@settings(max_examples=50, deadline=None)
@given(TEXTS.filter(bool), st.lists(TEXTS, min_size=1, max_size=3))
def test_bleu_is_between_0_and_1_and_1_of_a_reference(text, references):
    assert 0 <= sentence_bleu(text, references) <= 1
    assert sentence_bleu(text, [*references, text]) == pytest.approx(1)
    more = [*references, references[0]]
    assert sentence_bleu(text, more) == sentence_bleu(text, references)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 3))
def test_distinct_counts_kinds(texts, order):
    runs = [tuple(t[i : i + order]) for t in texts for i in range(len(t) - order + 1)]
    total = sum(len(text) for text in texts)
    assert distinct(texts, order) == (len(set(runs)) / total if total else 0)
    assert sum(ngrams(text, order).total() for text in texts) == len(runs)


def test_the_oracle_takes_the_best_of_the_first():
    texts, reference = [["a"], ["a", "b"]], ["a", "b"]
    assert oracle_bleu(texts, [reference]) == 1
    assert oracle_bleu(texts, [reference], 1) == sentence_bleu(["a"], [reference])


def test_equal_texts_are_alike_and_one_is_like_itself():
    text = list("abcd")
    assert self_bleu([text, text, text]) == pytest.approx(1)
    assert self_bleu([text, list("efgh")]) == 0
    assert self_bleu([text]) == 1


def test_no_text_and_no_reference():
    assert sentence_bleu([], [["a"]]) == 0
    with pytest.raises(ValueError, match="reference"):
        sentence_bleu(["a"], [])
