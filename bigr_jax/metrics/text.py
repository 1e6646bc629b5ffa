"""How good, and how unlike one another, texts are: of sequences of tokens, on the host."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]


def ngrams(tokens: Tokens, order: int) -> Counter[tuple[Hashable, ...]]:
    """Returns how often every run of `order` tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def distinct(texts: Sequence[Tokens], order: int) -> float:
    """Returns the number of different n-grams over that of all tokens of the texts; 0 of none.

    Source: Li et al. (arXiv 1510.03055), section 5.1, as Diverse Beam Search uses it.
    """
    kinds = {gram for text in texts for gram in ngrams(text, order)}
    return len(kinds) / max(1, sum(map(len, texts)))


def sentence_bleu(text: Tokens, references: Sequence[Tokens], order: int = 4) -> float:
    """Returns BLEU of one text against several references, in [0, 1].

    The precisions of orders above 1 have one added above and below, so that one order without a
    match does not make all of it 0. Raises ValueError without references.
    Source: Papineni et al. (ACL 2002), smoothed as Lin and Och (COLING 2004).
    """
    if not references:
        raise ValueError("BLEU needs at least one reference")
    if not text:
        return 0.0
    logs = 0.0
    for size in range(1, order + 1):
        most: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, size)
        found = ngrams(text, size)
        matches, total = (found & most).total(), found.total()
        if size > 1:
            matches, total = matches + 1, total + 1
        if not matches:
            return 0.0
        logs += math.log(matches / total) / order
    # Of references equally far in length, the shorter one.
    nearest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return math.exp(logs + min(0.0, 1 - nearest / len(text)))


def oracle_bleu(texts: Sequence[Tokens], references: Sequence[Tokens], first: int = 0) -> float:
    """Returns the BLEU of the best of the texts, or of the `first` ones: oracle@k."""
    return max(sentence_bleu(text, references) for text in texts[: first or None])


def self_bleu(texts: Sequence[Tokens]) -> float:
    """Returns the mean BLEU of each text against the others: how alike they are; 1 of one text.

    Source: Texygen (arXiv 1802.01886), section 3.
    """
    if len(texts) < 2:
        return 1.0
    others = ([*texts[:i], *texts[i + 1 :]] for i in range(len(texts)))
    return sum(map(sentence_bleu, texts, others)) / len(texts)
