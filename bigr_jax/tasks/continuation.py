"""What a language model has to show: lists of continuations of texts that it has not seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bigr_jax import pictures
from bigr_jax.api import Array, Given, Report
from bigr_jax.errors import one_of
from bigr_jax.gather import on_host
from bigr_jax.generate.autoregressive import Sampling, sample
from bigr_jax.generate.beam import Search, beam_search
from bigr_jax.generate.decoder import language_model, read
from bigr_jax.metrics.text import distinct, oracle_bleu, self_bleu
from bigr_jax.models.decoder_lm import DecoderLM

KINDS = ("beam", "sample")
_SHOWN = 3


class Decoding(NamedTuple):
    """How the list of a text is made.

    kind   "beam": beam search, in `groups` of beams that differ; "sample": drawn one by one
    beams  sequences of a list; the others as of `generate.beam.Search` and
           `generate.autoregressive.Sampling`
    texts  how many texts are continued, at most
    """

    kind: str = "beam"
    length: int = 32
    beams: int = 8
    groups: int = 1
    diversity: float = 0.5
    likeness: str = "hamming"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    texts: int = 64


class Prompts(NamedTuple):
    """Texts to go on from.

    tokens      int32 [n, longest], filled up to the right
    lengths     int32 [n]
    references  of each some continuations as they stand in the data, without their end
    """

    tokens: np.ndarray
    lengths: np.ndarray
    references: list[list[tuple[int, ...]]]


class Continued(NamedTuple):
    """Of every text a list of continuations, the likeliest first, without their ends, and the log p
    of each.
    """

    texts: list[list[tuple[int, ...]]]
    logp: list[list[float]]


def grouped_prompts(rows: np.ndarray, prefix: int, end: int, most: int) -> Prompts:
    """Returns what rows [n, length] that begin with the same `prefix` tokens have in common, once
    each, with all that follows it as references.
    """
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in rows.tolist():
        found.setdefault(tuple(row[:prefix]), []).append(_cut(row[prefix:], end))
    chosen = list(found.items())[:most]
    tokens = np.asarray([prompt for prompt, _ in chosen], np.int32)
    return Prompts(tokens, np.full(len(chosen), prefix, np.int32), [refs for _, refs in chosen])


def line_prompts(
    rows: np.ndarray, end: int, most: int, shortest: int = 16, line: tuple[int, int] = (4, 24)
) -> Prompts:
    """Returns the rows up to a token `end`, with the line that follows as the one reference: of
    every row the first such line that has from line[0] to line[1] tokens and `shortest` before it.
    """
    tokens, lengths, references = [], [], []
    for row in rows.tolist():
        ends = [place for place, token in enumerate(row) if token == end]
        for here, there in itertools.pairwise(ends):
            if here + 1 >= shortest and line[0] <= there - here - 1 <= line[1]:
                tokens.append([*row[: here + 1], *[end] * (len(row) - here - 1)])
                lengths.append(here + 1)
                references.append([tuple(row[here + 1 : there])])
                break
        if len(tokens) == most:
            break
    return Prompts(np.asarray(tokens, np.int32), np.asarray(lengths, np.int32), references)


def continued(
    net: DecoderLM, variables: Any, key: Array, prompts: Prompts, decoding: Decoding, end: int
) -> Continued:
    """Returns the lists of all prompts, made by one compiled program.

    Raises UserError where a setting of the decoding is not legal.
    """
    if decoding.kind not in KINDS:
        raise one_of("sample.kind", decoding.kind, KINDS)
    names = Search._fields if decoding.kind == "beam" else Sampling._fields
    settings = {name: getattr(decoding, name) for name in names if name != "end"}

    def run(variables: Any, key: Array, tokens: Array, lengths: Array) -> tuple[Array, Array]:
        decoder, more = language_model(net, variables), decoding.length
        memory, first = read(net, variables, tokens, lengths, more, decoding.beams)
        if decoding.kind == "sample":
            return sample(decoder, memory, first, key, Sampling(end=end, **settings))
        found = beam_search(decoder, memory, first, Search(end=end, **settings))
        return found.tokens, found.logp

    found = jax.jit(run)(variables, key, prompts.tokens, prompts.lengths)
    count = len(prompts.lengths)
    tokens, logp = on_host(found[0]), on_host(found[1]).reshape(count, -1)
    tokens = tokens.reshape(*logp.shape, -1)
    order = np.argsort(-logp, axis=1, kind="stable")
    kept = [
        [place for place in row if logp[text, place] > -np.inf] for text, row in enumerate(order)
    ]
    return Continued(
        [[_cut(tokens[text, i].tolist(), end) for i in row] for text, row in enumerate(kept)],
        [[float(logp[text, i]) for i in row] for text, row in enumerate(kept)],
    )


def measured(found: Continued, prompts: Prompts) -> dict[str, float]:
    """Returns the means over the texts of what a list is worth.

    oracle@k    BLEU of the best of the k likeliest, against the references; of all where k is their
                number
    distinct-n  kinds of n-grams over tokens of a list (`metrics.text.distinct`)
    self_bleu   how alike the list is
    best_logp, mean_logp  log p of the likeliest, and of all
    """
    rows: list[dict[str, float]] = []
    for texts, logp, references in zip(found.texts, found.logp, prompts.references, strict=True):
        best = {f"oracle@{k}": oracle_bleu(texts, references, k) for k in (1, len(texts))}
        kinds = {f"distinct-{order}": distinct(texts, order) for order in (1, 2)}
        scores = {"best_logp": max(logp), "mean_logp": float(np.mean(logp))}
        rows.append({**best, **kinds, "self_bleu": self_bleu(texts), **scores})
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def continuation_report(
    net: DecoderLM,
    decoding: Decoding,
    end: int,
    prompted: Callable[[Any, int], Prompts],
    said: Callable[[Sequence[int]], str],
) -> Callable[..., Report]:
    """Returns the `Method.report` that continues texts of the test part.

    prompted  (source, at most) -> Prompts
    said      tokens -> what people read
    """

    def report(variables: Any, key: Array, data: Any, given: Given) -> Report:
        prompts = prompted(data["test"], decoding.texts)
        found = continued(net, variables, key, prompts, decoding, end)
        return Report(measured(found, prompts), {"continuations": shown(prompts, found, said)})

    return report


def shown(prompts: Prompts, found: Continued, said: Callable[[Sequence[int]], str]) -> np.ndarray:
    """Returns the lists of a few texts as a picture, uint8 [H, W, 3]."""
    lines = []
    for text in range(min(_SHOWN, len(found.texts))):
        start = said(prompts.tokens[text, : prompts.lengths[text]].tolist())
        lines.append(f"after: {start.strip().splitlines()[-1]}")
        pairs = zip(found.logp[text], found.texts[text], strict=True)
        lines += [f"{logp:8.2f}  {said(tokens)}" for logp, tokens in pairs]
        lines.append("")
    return pictures.written(lines[:-1])


def _cut(tokens: Sequence[int], end: int) -> tuple[int, ...]:
    tokens = tuple(tokens)
    return tokens[: tokens.index(end)] if end in tokens else tokens
