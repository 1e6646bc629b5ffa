"""Classifying sentences as a method: a model of hidden tokens gets another head, and all of it is
trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from bigr_jax.api import Array, Aux, Batch, Given, Method, Report, Sum, Variables
from bigr_jax.data import Source, eval_batches
from bigr_jax.errors import UserError
from bigr_jax.gather import on_host
from bigr_jax.models.encoder import MaskedModel, SentenceClassifier

# Sentences that are measured at a time.
_ROWS = 256


class Tuning(NamedTuple):
    """How a model of hidden tokens is made to classify.

    stage       its name
    before      (stage, classes) of the classifiers that come before, each of which begins with what
                the one before it has learned, and this with the last
    pool        what of the tokens is read: "first" or "mean"
    dropout     rate before the last layer
    pretrained  whether it begins with the parameters of the stage before, or anew
    """

    stage: str = "classifier"
    before: tuple[tuple[str, int], ...] = ()
    pool: str = "first"
    dropout: float = 0.1
    pretrained: bool = True


def sentence_classifiers(
    told: MaskedModel, classes: int, tuning: Tuning, padding: int, stage: str
) -> dict[str, Method]:
    """Returns the methods that `tuning` names, the last of so many classes; see
    `sentence_classifier`. Raises UserError where two stages have one name.
    """
    found: dict[str, Method] = {}
    for name, number in (*tuning.before, (tuning.stage, classes)):
        if name == stage or name in found:
            said = f"finetune.stage={tuning.stage!r}, finetune.before={tuning.before}"
            raise UserError(f"{said}: two stages are called {name}")
        found[name] = sentence_classifier(told, number, tuning, padding, [stage, *found][-1])
    return found


def sentence_classifier(
    told: MaskedModel, classes: int, tuning: Tuning, padding: int, stage: str
) -> Method:
    """Returns the method that trains `told`, with another head, on {"tokens", "types", "label"}
    from `data.sentences`.

    padding  the token that fills up; -1: there is none
    stage    what it begins with: the one that trains `told` for hidden tokens, or another
             classifier, of which the last layer alone is left behind

    With one class the labels are scores, and the loss is the squared error. The report tells over
    the test split what `agreement_of` does. Raises UserError for scores where classes are wanted.
    """
    net = SentenceClassifier(classes, told, tuning.pool, tuning.dropout)
    scored, needs = classes == 1, (stage,) if tuning.pretrained else ()

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        variables = net.init(key, batch["tokens"])
        if not needs:
            return variables
        params, learned = dict(variables["params"]), given[stage]["params"]
        # Of another classifier all but its last layer, or a model of hidden tokens.
        whole = (
            {n: learned[n] for n in ("body", "pooler")} if "body" in learned else {"body": learned}
        )
        params |= {name: _taken(params[name], source) for name, source in whole.items()}
        return {**variables, "params": params}

    def read(variables: Any, batch: Mapping[str, Any], key: Array | None = None) -> Array:
        """Returns the logits, of training where there is a key."""
        tokens = batch["tokens"]
        real = None if padding < 0 else tokens != padding
        rngs = None if key is None else {"dropout": key}
        found: Any = net.apply(variables, tokens, real, batch["types"], key is None, rngs=rngs)
        return found

    def costs(logits: Array, batch: Batch) -> Array:
        if scored:
            return jnp.square(logits[:, 0] - batch["label"])
        if jnp.issubdtype(batch["label"].dtype, jnp.floating):
            raise UserError(
                f"these labels are scores, not {classes} classes: give --stage, and --base with "
                "the stages before it, which other data have trained"
            )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        return costs(read(variables, batch, key), batch).mean(), Aux({})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        logits, mask = read(variables, batch), batch["mask"]
        found = {"loss": Sum((costs(logits, batch) * mask).sum(), mask.sum())}
        if not scored:
            right = logits.argmax(-1) == batch["label"]
            found["accuracy"] = Sum((right * mask).sum(), mask.sum())
        return found

    def report(variables: Any, key: Array, data: Mapping[str, Source], given: Given) -> Report:
        logits_of, rows = jax.jit(read), len(data["test"])
        logits, labels = [], []
        for batch in eval_batches(data["test"], min(_ROWS, rows)):
            logits.append(on_host(logits_of(variables, {k: batch[k] for k in ("tokens", "types")})))
            labels.append(batch["label"])
        found = (np.concatenate(column)[:rows] for column in (logits, labels))
        return Report(agreement_of(*found), {})

    return Method(init=init, loss=loss, evaluate=evaluate, needs=needs, report=report)


def agreement_of(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns GLUE's metrics of logits, float [n, classes], and labels [n]: accuracy, the F1 of
    class 1 where there are two, and Matthews' correlation; where there is one class, of scores,
    the correlations of Pearson and Spearman.

    Source: GLUE (arXiv 1804.07461), section 3. Correlations of what is constant are 0. Raises
    ValueError for a label that is no class.
    """
    if logits.shape[-1] == 1:
        told = logits[:, 0].astype(np.float64)
        if np.ptp(told) == 0 or np.ptp(labels) == 0:
            return {"pearson": 0.0, "spearman": 0.0}
        pearson, spearman = stats.pearsonr(told, labels), stats.spearmanr(told, labels)
        return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
    # A second to import, which what never measures need not wait for.
    from sklearn.metrics import f1_score, matthews_corrcoef

    classes = logits.shape[-1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{classes} classes, and labels from {labels.min()} to {labels.max()}")
    told = logits.argmax(-1)
    found = {"accuracy": float((told == labels).mean())}
    if classes == 2:
        found["f1"] = float(f1_score(labels, told, zero_division=0.0))
    return {**found, "matthews": float(matthews_corrcoef(labels, told))}


def _taken(boxed: Any, source: Mapping[str, Any]) -> Any:
    """Returns the parameters of `boxed`, with their axes' names, filled with those of `source` of
    the same path.
    """
    if isinstance(boxed, nn.meta.AxisMetadata):
        # A copy: the state that begins with it is donated.
        return boxed.replace_boxed(jnp.copy(jnp.asarray(source)))
    if isinstance(boxed, Mapping):
        return {name: _taken(below, source[name]) for name, below in boxed.items()}
    return jnp.copy(jnp.asarray(source))
