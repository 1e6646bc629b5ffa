"""BERT4Rec: items of sequences told from both sides (2019, arXiv 1904.06690).

Claim     Among 100 popular items, HR@10 of 0.697 on ML-1M and 0.747 on ML-20M, against SASRec's
          0.663 on ML-1M; one hidden item a sequence is enough to be ahead.
Evidence  MovieLens-100K, last item held out, the one before for validation, ranks among all items
          not had; sequences of a known law with their best guess; the same network, data and steps
          for every objective, 3 seeds.
Command   bigr prove --config=bert4rec:small
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigr_jax.api import Method
from bigr_jax.config import build
from bigr_jax.data.made_interactions import best_guess, made
from bigr_jax.lab import plots
from bigr_jax.models.encoder import Encoder, MaskedModel
from bigr_jax.models.item_counts import Markov, Popularity
from bigr_jax.tasks.next_item import Objective, Ranking, measured_scorer, next_item

ONE_WAY = {"encoder.mixer": "causal_attention"}
ARMS = {
    "BERT4Rec": {},
    "SASRec, BCE": {**ONE_WAY, "objective.kind": "bce"},
    "SASRec, softmax": {**ONE_WAY, "objective.kind": "softmax"},
    "BERT4Rec, one hidden": {"objective.rate": "0.0"},
    "BERT4Rec, never the last alone": {"objective.last": "0.0"},
}
# Of each task what it changes, and the arms that are compared on it.
TASKS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "ml-100k": ({}, (*ARMS, "popularity", "Markov")),
    "made": (
        {"data.source": "interactions:made", "data.size": "20", "model.dropout": "0.1",
         "encoder.dropout": "0.1"},
        ("BERT4Rec", "SASRec, BCE", "SASRec, softmax", "popularity", "Markov", "best guess"),
    ),
}  # fmt: skip
HITS, BOTH = "hits within", "hr@10, both held out"
OVER, SHARE = "hits over popularity's", "ndcg@10 over the best"
# Of each task what its arms' metric is divided by.
SHARES = {"ml-100k": (BOTH, "popularity", OVER), "made": ("ndcg@10", "best guess", SHARE)}
KEPT = {
    "ml-100k": ("hr@10", "ndcg@10", "mrr", "hr@10 of 100 popular", "ndcg@10 of 100 popular",
                "hr@10 of 100 uniform", "middle_hr@10"),
    "made": ("hr@10", "ndcg@10", "middle_hr@10"),
}  # fmt: skip
# (text, task, metric, better, than)
CLAIMS = (
    ("BERT4Rec hits 1.6 times as often as what is popular", "ml-100k", OVER, "BERT4Rec", 1.6),
    ("BERT4Rec hits more often than what mostly follows", "ml-100k", BOTH, "BERT4Rec", "Markov"),
    ("BERT4Rec hits more often than SASRec as published", "ml-100k", BOTH, "BERT4Rec",
     "SASRec, BCE"),
    ("BERT4Rec comes within a fifth of the best guess", "made", SHARE, "BERT4Rec", 0.8),
    ("both sides tell an item in the middle better than one", "made", "middle_hr@10", "BERT4Rec",
     "SASRec, softmax"),
)  # fmt: skip


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: an encoder that tells items."""
    data, encoder = config.data, build(Encoder, config.encoder)
    net = build(
        MaskedModel,
        config.model,
        vocabulary=data.num_classes,
        encoder=encoder,
        positions=data.size,
        dtype=encoder.dtype,
    )
    objective, ranking = build(Objective, config.objective), build(Ranking, config.ranking)
    return {"model": next_item(net, objective, ranking)}


def study(config: Any, lab: Any) -> None:
    """Trains one network by every objective, and ranks what was held out, beside counting."""
    arms, tasks = lab.arms(ARMS), config.study.tasks
    asked = build(Ranking, config.ranking)
    for seed in lab.seeds:
        sources: dict[str, Any] = {}
        for arm, own in arms.items():
            runs = {
                task: lab.train(f"{arm}, {task}", {**own, **changes(config.study, task)}, seed)
                for task in tasks
                if is_on(arm, task)
            }
            sources |= {task: run.sources["test"] for task, run in runs.items()}
            lab.measure(arm, seed, functools.partial(trained, runs))
            if (seed, arm) == (0, "BERT4Rec"):
                for task, run in runs.items():
                    lists = run.report("model", seed).images["recommendations"]
                    lab.figure(f"recommendations-{task}", lists)
        for arm in COUNTED:
            lab.measure(arm, seed, functools.partial(counted, arm, sources, asked))
        for task in tasks:
            compare(lab, arms, task, seed)
    for text, task, metric, better, than in CLAIMS:
        if task in tasks:
            lab.claim(f"{task}: {text}", f"{task}: {metric}", better, than)
    for task in tasks:
        lab.figure(f"hits-{task}", hits(lab, task, arms, asked.ks))


def hits(lab: Any, task: str, arms: Any, ks: Sequence[int]) -> np.ndarray:
    """Returns who hits how often with how many items, uint8 [H, W, 3]."""
    curves = {
        arm: np.asarray(
            [[lab.values(arm, f"{task}: {HITS}/{k}")[s] for k in ks] for s in lab.seeds]
        )
        for arm in (*arms, *COUNTED)
        if is_on(arm, task)
    }
    title, y = f"{task}: the last item of every user", "share of users who took one of them"
    return plots.lines(title, ks, curves, "recommended items", y)


def changes(study: Any, task: str) -> dict[str, str]:
    """Returns what a task changes in all arms."""
    if task != "made":
        return TASKS[task][0]
    how = {"duration": study.made_duration, "optimizer.lr": str(study.made_lr)}
    return {**TASKS[task][0], **{f"train.model.{name}": value for name, value in how.items()}}


def is_on(arm: str, task: str) -> bool:
    """Returns whether an arm is compared on a task."""
    return arm in TASKS[task][1]


def compare(lab: Any, arms: Any, task: str, seed: int) -> None:
    """Records what an arm reaches beside another."""
    metric, other, name = SHARES[task]
    against = lab.values(other, f"{task}: {metric}")[seed]
    for arm in arms:
        if is_on(arm, task):
            share = lab.values(arm, f"{task}: {metric}")[seed] / against
            lab.record(arm, f"{task}: {name}", share, seed)


def trained(runs: Any) -> dict[str, float]:
    """Returns what is of interest of one arm on every task."""
    return named({task: run.measured("model") for task, run in runs.items()})


def counted(arm: str, sources: Any, asked: Ranking) -> dict[str, float]:
    """Returns what is of interest of a scorer that is not trained, on every task."""
    return named(
        {
            task: measured_scorer(COUNTED[arm](source), source, asked)
            for task, source in sources.items()
            if is_on(arm, task)
        }
    )


def named(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns {"task: metric": value}."""
    kept: dict[str, float] = {}
    for task, metrics in found.items():
        kept |= {f"{task}: {name}": metrics[name] for name in KEPT[task] if name in metrics}
        kept |= {
            f"{task}: {HITS}/{name[3:]}": value
            for name, value in metrics.items()
            if name.startswith("hr@") and name[3:].isdecimal()
        }
        kept[f"{task}: {BOTH}"] = (metrics["hr@10"] + metrics["valid_hr@10"]) / 2
    return kept


def popularity(source: Any) -> Any:
    """Returns what scores every item by how often it is taken."""
    scorer = Popularity(source.counts())
    return lambda batch: scorer.scores(batch["tokens"][:, -2])


def markov(source: Any) -> Any:
    """Returns what scores every item by how often it follows the last one."""
    scorer = Markov(source.sequences(), source.counts())
    return lambda batch: scorer.scores(batch["tokens"][:, -2])


def best(source: Any) -> Any:
    """Returns what scores every item as the law of the made sequences does, given all before."""
    own = np.asarray([int(name) for name in source.info.class_names[1:-1]])
    items = np.asarray([-1, *own, -1])

    def scores(batch: Any) -> np.ndarray:
        guess = best_guess(made().law, items[batch["tokens"][:, :-1]])[:, own]
        return np.pad(guess, ((0, 0), (1, 1))).astype(np.float32)

    return scores


COUNTED = {"popularity": popularity, "Markov": markov, "best guess": best}
