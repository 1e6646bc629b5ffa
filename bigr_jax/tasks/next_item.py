"""Telling items of sequences as a method: hidden ones from both sides, or the next from those
before it; measured by the rank of the items held out among all that a user has not had.

Sources: BERT4Rec (arXiv 1904.06690); SASRec (arXiv 1808.09781); the evaluation by full ranks:
Krichene and Rendle (2020, "On sampled metrics for item recommendation").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax import pictures
from bigr_jax.api import Array, Aux, Batch, Given, Method, Network, Part, Report, Sum, Variables
from bigr_jax.data import eval_batches
from bigr_jax.data.interactions import PADDING, TEST, VALIDATION, InteractionSource
from bigr_jax.errors import UserError, one_of
from bigr_jax.gather import on_host
from bigr_jax.metrics import ranking
from bigr_jax.models.encoder import MaskedModel
from bigr_jax.nn.mixers import CAUSAL
from bigr_jax.ops.masking import cloze_count, cloze_mask, last_mask, places_of

KINDS = ("cloze", "bce", "softmax")
# What a metric is called by the item that it asks for.
ASKED = {TEST: "", VALIDATION: "valid_"}
# Rows that are measured at a time beside training; lists, and items of each, that a picture shows.
_ROWS, _SHOWN, _ITEMS = 256, 4, 6

Scorer = Callable[[Mapping[str, np.ndarray]], Any]


class Objective(NamedTuple):
    """What is told in training.

    kind  "cloze": items that are hidden; "softmax": the next item among all; "bce": that it is
          likelier than one other, drawn from those that the user has not had
    rate  of the cloze: share of a sequence's items that is hidden, one at least
    last  of the cloze: share of the sequences of which the last item alone is hidden, as it is when
          the model is used
    most  of the cloze: most items that are hidden; 0: as many as `rate` says of a whole window
    """

    kind: str = "cloze"
    rate: float = 0.2
    last: float = 1 / 11
    most: int = 0


class Ranking(NamedTuple):
    """What is measured: hits and gains up to each of `ks`, and by the report also among the target
    and `drawn` others.
    """

    ks: tuple[int, ...] = (1, 5, 10)
    drawn: int = 100


def next_item(net: MaskedModel, objective: Objective, ranking_: Ranking) -> Method:
    """Returns the method that trains `net` on the columns of `data.interactions`.

    The last of its vocabulary hides an item, item 0 is padding. Raises UserError for an objective
    that is not legal, and where a network that sees what comes after is to tell the next item.
    """
    check(net, objective)

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, batch["tokens"])

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        told = _cloze if objective.kind == "cloze" else _following
        cost, weight = told(net, objective, variables, key, batch)
        return (cost * weight).sum() / jnp.maximum(weight.sum(), 1.0), Aux({})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        scores = last_scores(net, objective.kind, variables, batch["tokens"])
        cost = optax.softmax_cross_entropy_with_integer_labels(scores, batch["tokens"][:, -1])
        weight = batch["mask"] * (batch["part"] == TEST)
        total = {"loss": Sum((cost * weight).sum(), weight.sum())}
        return total | held_out(scores[:, : net.vocabulary], batch, ranking_.ks)

    def report(variables: Any, key: Array, data: Any, given: Given) -> Report:
        return _reported(net, objective.kind, ranking_, variables, data)

    whole = Network((Part(net, {"params": ()}),))
    return Method(init=init, loss=loss, evaluate=evaluate, report=report, model=whole)


def check(net: MaskedModel, objective: Objective) -> None:
    """Raises UserError where an objective is not legal, or not for this network."""
    kind, mixer = objective.kind, net.encoder.mixer
    if kind not in KINDS:
        raise one_of("objective.kind", kind, KINDS)
    for name in ("rate", "last"):
        if not 0 <= getattr(objective, name) <= 1:
            raise UserError(f"objective.{name}={getattr(objective, name)} is no share; legal: 0..1")
    if objective.most < 0:
        raise UserError(f"objective.most={objective.most} must not be negative")
    if kind != "cloze" and mixer not in CAUSAL:
        raise UserError(
            f"objective.kind={kind!r} asks for the next item, which encoder.mixer={mixer!r} sees; "
            f"legal with it: {', '.join(sorted(CAUSAL))}"
        )


def scores_at(net: MaskedModel, kind: str, variables: Any, tokens: Array, places: Array) -> Array:
    """Returns the scores of the items that may stand at one place of each sequence, float32 [batch,
    rows of the table], of a network trained by an objective of this kind.

    tokens: int [batch, length]; places: int [batch], for a network of one direction from 1. What
    stands there is not seen, what comes after only by the cloze.
    """
    if kind == "cloze":
        hidden = jnp.arange(tokens.shape[1]) == places[:, None]
        shown, at = jnp.where(hidden, net.vocabulary - 1, tokens), places
    else:
        shown, at = tokens[:, :-1], places - 1
    logits: Any = net.apply(variables, shown, shown != PADDING, places=at[:, None])
    return logits[:, 0]


def last_scores(net: MaskedModel, kind: str, variables: Any, tokens: Array) -> Array:
    """Returns `scores_at` the end of each sequence."""
    batch, length = tokens.shape
    return scores_at(net, kind, variables, tokens, jnp.full(batch, length - 1))


def barred(batch: Mapping[str, Any], items: int) -> Array:
    """Returns what is no candidate of a row, bool [batch, items]: what its user has had, padding,
    and the token that hides.
    """
    had = jnp.unpackbits(batch["seen"], axis=-1, count=items) > 0
    return had.at[:, PADDING].set(True).at[:, items - 1].set(True)


def held_out(scores: Array, batch: Mapping[str, Any], ks: Sequence[int]) -> dict[str, Sum]:
    """Returns `ranking.sums` of the items held out for the test, and of those for the validation,
    "valid_...", among all candidates.

    scores: float [batch, items], for the end of each row of an `InteractionSource`.
    """
    target, exclude = batch["tokens"][:, -1], barred(batch, scores.shape[1])
    places = ranking.ranks(scores, target, exclude)
    found: dict[str, Sum] = {}
    for part, prefix in ASKED.items():
        weight = batch["mask"] * (batch["part"] == part)
        named = ranking.sums(places, ks, weight)
        found |= {f"{prefix}{name}": pair for name, pair in named.items()}
    return found


def among_drawn(
    scores: Array, batch: Mapping[str, Any], counts: Array | np.ndarray, asked: Ranking
) -> dict[str, Sum]:
    """Returns `ranking.sums` of the test's items, each among itself and others that are drawn
    uniformly, and by popularity; every scorer is asked about the same ones.

    scores: float [batch, items]; counts: int [items], how often each is taken.
    """
    target = batch["tokens"][:, -1]
    chosen = jnp.arange(scores.shape[1]) == target[:, None]
    exclude = barred(batch, scores.shape[1]) | chosen
    weight = batch["mask"] * (batch["part"] == TEST)
    key = jax.random.fold_in(jax.random.key(0), batch["index"][0])
    found: dict[str, Sum] = {}
    for name, weights in {"uniform": jnp.ones(len(counts)), "popular": jnp.asarray(counts)}.items():
        others, there = ranking.drawn_items(key, weights, exclude, asked.drawn)
        places = ranking.sampled_ranks(scores, target, others, there)
        named = ranking.sums(places, asked.ks, weight)
        found |= {f"{metric} of {asked.drawn} {name}": pair for metric, pair in named.items()}
    return found


def middle(net: MaskedModel, kind: str, asked: Ranking) -> Callable[..., dict[str, Sum]]:
    """Returns (variables, batch) -> `ranking.sums` of the item in the middle of each row of the
    test, "middle_...", among all that do not stand elsewhere in its sequence.
    """

    def measure(variables: Any, batch: Mapping[str, Any]) -> dict[str, Sum]:
        tokens = jnp.asarray(batch["tokens"])
        length = tokens.shape[1]
        real = (tokens != PADDING).sum(-1)
        places = length - real + real // 2
        scores = scores_at(net, kind, variables, tokens, places)[:, : net.vocabulary]
        target = jnp.take_along_axis(tokens, places[:, None], axis=1)[:, 0]
        elsewhere = jax.nn.one_hot(tokens, net.vocabulary, dtype=jnp.int8).any(axis=1)
        exclude = barred(batch, net.vocabulary) | elsewhere
        weight = batch["mask"] * (batch["part"] == TEST)
        named = ranking.rank_metrics(scores, target, exclude, asked.ks, weight)
        return {f"middle_{name}": pair for name, pair in named.items()}

    return measure


def measured(
    function: Callable[[Mapping[str, np.ndarray]], Mapping[str, Sum]], source: Any
) -> dict[str, float]:
    """Returns the metrics of a function of batches over a whole source."""
    total: dict[str, Any] = {}
    for batch in eval_batches(source, _ROWS, prefetch=0):
        for name, pair in on_host(dict(function(batch))).items():
            total[name] = total.get(name, 0.0) + np.array(pair, np.float64)
    return {name: Sum(*pair).metric() for name, pair in total.items()}


def measured_scorer(score: Scorer, source: InteractionSource, asked: Ranking) -> dict[str, float]:
    """Returns all metrics of a scorer that is not trained; score: batch -> [batch, items]."""
    counts = source.counts().astype(np.float32)

    @jax.jit
    def sums(scores: Array, batch: Mapping[str, Array]) -> dict[str, Sum]:
        return held_out(scores, batch, asked.ks) | among_drawn(scores, batch, counts, asked)

    return measured(lambda batch: sums(score(batch), batch), source)


def _cloze(
    net: MaskedModel, objective: Objective, variables: Any, key: Array, batch: Batch
) -> tuple[Array, Array]:
    """Returns the cost of every slot and whether it is used, both [batch, slots]."""
    draw, choose, dropout = jax.random.split(key, 3)
    tokens = batch["tokens"]
    size, length = tokens.shape
    real = tokens != PADDING
    most = cloze_count(length, objective.rate, objective.most or length)
    only = jax.random.bernoulli(choose, objective.last, (size, 1))
    hidden = jnp.where(only, last_mask(real), cloze_mask(draw, real, objective.rate, most))
    places, weight = places_of(hidden, most)
    shown = jnp.where(hidden, net.vocabulary - 1, tokens)
    how: dict[str, Any] = {"deterministic": False, "rngs": {"dropout": dropout}}
    logits: Any = net.apply(variables, shown, real, places=places, **how)
    wanted = jnp.take_along_axis(tokens, places, axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, wanted), weight


def _following(
    net: MaskedModel, objective: Objective, variables: Any, key: Array, batch: Batch
) -> tuple[Array, Array]:
    """Returns the cost of every place but the last and whether it counts, [batch, length - 1]."""
    draw, dropout = jax.random.split(key)
    shown, wanted = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    real = shown != PADDING
    how: dict[str, Any] = {"deterministic": False, "rngs": {"dropout": dropout}}
    if objective.kind == "softmax":
        logits: Any = net.apply(variables, shown, real, **how)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    else:
        other = unseen(draw, barred(batch, net.vocabulary), wanted.shape[1])
        choices = jnp.stack([wanted, other], axis=-1)
        both: Any = net.apply(variables, shown, real, choices=choices, **how)
        cost = optax.sigmoid_binary_cross_entropy(both, jnp.asarray([1.0, 0.0])).sum(-1)
    return cost, real.astype(jnp.float32)


def unseen(key: Array, exclude: Array, count: int) -> Array:
    """Draws items that are not excluded, each as likely, int32 [batch, count]; exclude: bool
    [batch, items].
    """
    upto = jnp.cumsum(~exclude, axis=1)
    share = jax.random.uniform(key, (len(exclude), count))
    # Rounding up to 1 must not lead beyond the last.
    number = jnp.minimum((share * upto[:, -1:]).astype(jnp.int32), upto[:, -1:] - 1)
    find = jax.vmap(lambda row, numbers: jnp.searchsorted(row, numbers, side="right"))
    return jnp.minimum(find(upto, number), exclude.shape[1] - 1).astype(jnp.int32)


def _reported(net: MaskedModel, kind: str, asked: Ranking, variables: Any, data: Any) -> Report:
    source = data["test"]
    counts, at_middle = source.counts().astype(np.float32), middle(net, kind, asked)

    @jax.jit
    def sums(variables: Any, batch: Mapping[str, Array]) -> dict[str, Sum]:
        scores = last_scores(net, kind, variables, batch["tokens"])[:, : net.vocabulary]
        found = among_drawn(scores, batch, counts, asked)
        return found | at_middle(variables, batch)

    numbers = measured(lambda batch: sums(variables, batch), source)
    few = source.gather(np.arange(len(source) - _SHOWN, len(source)))
    last = jax.jit(functools.partial(last_scores, net, kind))
    scores = on_host(last(variables, few["tokens"]))[:, : net.vocabulary]
    return Report(numbers, {"recommendations": shown_lists(scores, few, source.info.class_names)})


def shown_lists(scores: Any, batch: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Returns what a few users had last and what they are told to take, uint8 [H, W, 3]; ">" marks
    what they did take.
    """
    exclude = barred(batch, len(names))
    best = np.asarray(jax.lax.top_k(jnp.where(exclude, -jnp.inf, scores), _ITEMS)[1])
    lines = []
    for row, items in zip(batch["tokens"], best.tolist(), strict=True):
        had = [names[item] for item in row[:-1].tolist() if item != PADDING][-_ITEMS:]
        lines.append("had: " + "; ".join(had))
        lines += [f"   {'>' if item == row[-1] else ' '} {names[item]}" for item in items]
        lines += [f"took: {names[int(row[-1])]}", ""]
    return pictures.written(lines[:-1])
