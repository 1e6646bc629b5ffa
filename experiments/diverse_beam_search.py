"""Diverse beam search: lists of continuations that differ (2016, arXiv 1610.02424).

Claim     With as many beams better oracle scores, far more distinct n-grams and a better best
          caption than beam search: COCO SPICE oracle@1 / @20 16.8 / 28.1 against 16.3 / 27.3.
Evidence  One language model a seed, 3 seeds, eight continuations of unseen texts: captions of made
          scenes with five references each, and lines of Python sources.
Command   bigr prove --config=diverse_beam_search:small
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigr_jax.api import Method
from bigr_jax.config import build
from bigr_jax.data import phrases
from bigr_jax.data.opening import tokenizer_of
from bigr_jax.lab import plots
from bigr_jax.models.decoder_lm import DecoderLM
from bigr_jax.tasks.continuation import (
    Decoding,
    Prompts,
    continuation_report,
    grouped_prompts,
    line_prompts,
)
from bigr_jax.tasks.next_token import next_tokens

ARMS = {
    "diverse": {},
    "beam": {"sample.groups": "1"},
    "beam of 2": {"sample.groups": "1", "sample.beams": "2"},
    "diverse, lambda 0": {"sample.diversity": "0.0"},
    "diverse, lambda 0.2": {"sample.diversity": "0.2"},
    "diverse, lambda 1": {"sample.diversity": "1.0"},
    "diverse, lambda 2": {"sample.diversity": "2.0"},
    "diverse, 8 groups": {"sample.groups": "8"},
    "diverse, bigrams": {"sample.likeness": "bigrams"},
    "sampling": {"sample.kind": "sample"},
    "sampling, half as warm": {"sample.kind": "sample", "sample.temperature": "0.5"},
}
SWEEP = {0.0: "diverse, lambda 0", 0.2: "diverse, lambda 0.2", 0.5: "diverse",
         1.0: "diverse, lambda 1", 2.0: "diverse, lambda 2"}  # fmt: skip
# What a task changes in all arms.
TASKS = {
    "phrases": {},
    "text": {
        "data.source": "text:python",
        "data.tokenizer": "bpe:512",
        "data.size": "64",
        "text.prefix": "0",
        "sample.length": "24",
        "train.model.batch_size": "32",
    },
}
# (text, metric, better, than, by how much at least), of both tasks.
CLAIMS = (
    ("a list has half as many n-grams again", "distinct-2 over beam's", "diverse", 1.5, 0.0),
    ("its best comes nearer to the references", "oracle@8", "diverse", "beam", 0.0),
    ("in groups of one, too", "oracle@8", "diverse, 8 groups", "beam", 0.0),
    ("its likeliest is no worse than a beam search's of the first group's width", "best_logp",
     "diverse", "beam of 2", -1e-3),
    ("its likeliest is within a tenth of the whole width's", "best log p over beam's", 1.1,
     "diverse", 0.0),
    ("more diversity, more n-grams", "distinct-2", "diverse, lambda 2", "diverse, lambda 0.2", 0.0),
    ("more diversity, less likely", "mean_logp", "diverse, lambda 0.2", "diverse, lambda 2", 0.0),
)  # fmt: skip


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: a language model, whose report decodes as `sample` says."""
    data, text = config.data, config.text
    net = build(DecoderLM, config.model, vocabulary=data.num_classes)
    end, padding, said = spoken(data, text)
    prompted = functools.partial(prompts, prefix=text.prefix, end=end)
    report = continuation_report(net, build(Decoding, config.sample), end, prompted, said)
    return {"model": next_tokens(net, padding=padding)._replace(report=report)}


def spoken(data: Any, text: Any) -> tuple[int, int, Callable[[Sequence[int]], str]]:
    """Returns the token that ends a sequence, the one that fills up, and how tokens are read."""
    source, end, padding = data.source, text.end, text.padding
    if source == "phrases":
        words = phrases.vocabulary()
        return words.index(phrases.END), words.index(phrases.PADDING), phrases.said
    if source.startswith("text:"):
        tokenizer = tokenizer_of(data)
        own = int(tokenizer.encode(b"\n")[0])
        return own, padding, lambda ids: tokenizer.decode(np.asarray(ids)).decode("latin-1")
    return end, padding, lambda ids: " ".join(map(str, ids))


def prompts(source: Any, most: int, *, prefix: int, end: int) -> Prompts:
    """Returns what is continued: scenes to tell, or texts up to the end of a line."""
    rows = source.gather(np.arange(min(len(source), 64 * most)))["tokens"]
    if prefix:
        return grouped_prompts(rows, prefix, end, most)
    return line_prompts(rows, end, most)


def study(config: Any, lab: Any) -> None:
    """Trains one model per task and seed, and continues the same texts in every way."""
    tasks, arms = config.study.tasks, lab.arms(ARMS)
    for seed in lab.seeds:
        for arm, own in arms.items():
            runs = {t: lab.train(f"{arm}, {t}", {**TASKS[t], **own}, seed) for t in tasks}
            lab.measure(arm, seed, functools.partial(decoded, runs))
        for task in tasks:
            compare(lab, arms, task, seed)
    for task in tasks:
        for text, metric, better, than, margin in CLAIMS:
            lower = not isinstance(better, str)
            arm, other = (than, better) if lower else (better, than)
            said = f"{task}: {text}"
            lab.claim(said, f"{task}: {metric}", arm, other, lower=lower, margin=margin)
        if set(SWEEP.values()) <= arms.keys():
            lab.figure(task, sweep(lab, task))


def decoded(runs: Any) -> dict[str, float]:
    """Returns what the lists of every task are worth."""
    return {
        f"{task}: {metric}": value
        for task, run in runs.items()
        for metric, value in run.measured("model").items()
    }


def compare(lab: Any, arms: Any, task: str, seed: int) -> None:
    """Records what is of interest beside beam search."""
    kinds, best = f"{task}: distinct-2", f"{task}: best_logp"
    for arm in arms:
        if "beam" in arms:
            share = lab.values(arm, kinds)[seed] / lab.values("beam", kinds)[seed]
            lab.record(arm, f"{kinds} over beam's", share, seed)
            share = lab.values(arm, best)[seed] / lab.values("beam", best)[seed]
            lab.record(arm, f"{task}: best log p over beam's", share, seed)


def sweep(lab: Any, task: str) -> np.ndarray:
    """Returns oracle and kinds of n-grams against the diversity, uint8 [H, W, 3]."""
    curves = {
        name: np.asarray(
            [
                [lab.values(arm, f"{task}: {metric}")[seed] for arm in SWEEP.values()]
                for seed in lab.seeds
            ]
        )
        for name, metric in {
            "best of 8 (BLEU)": "oracle@8",
            "likeliest (BLEU)": "oracle@1",
            "distinct bigrams": "distinct-2",
        }.items()
    }
    title = f"{task}: 8 beams in 4 groups"
    return plots.lines(title, list(SWEEP), curves, "diversity (lambda)", "mean over texts")
