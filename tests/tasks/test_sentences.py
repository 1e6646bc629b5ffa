"""Classifying sentences: where the parameters come from, what counts, and GLUE's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.errors import UserError
from bigr_jax.models.encoder import Encoder, MaskedModel, SentenceClassifier
from bigr_jax.tasks.sentences import (
    Tuning,
    agreement_of,
    sentence_classifier,
    sentence_classifiers,
)
from bigr_jax.train import commands

BODY = MaskedModel(12, 16, Encoder(1, "hydra", {"head_dim": 8, "state": 4, "chunk": 8}), types=2)
KEY = jax.random.key(0)


def rows(kind: Any = np.int32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 12, (3, 6)).astype(np.int32)
    tokens[0, 4:] = 0
    types = np.array([[0, 0, 0, 1, 1, 1]] * 3, np.int32)
    label = np.array([2, 0, 1]).astype(kind)
    mask = np.array([1, 1, 0], np.float32)
    return {name: jnp.asarray(x) for name, x in locals().items() if name not in ("rng", "kind")}


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_padding_changes_nothing(pool: str) -> None:
    net, batch = SentenceClassifier(3, BODY, pool), rows()
    variables = jax.jit(net.init)(KEY, batch["tokens"])
    told = jax.jit(net.apply)
    mask = batch["tokens"] != 0
    whole = np.asarray(told(variables, batch["tokens"], mask, batch["types"]))
    alone = np.asarray(told(variables, batch["tokens"][:1, :4], None, batch["types"][:1, :4]))
    np.testing.assert_allclose(whole[0], alone[0], atol=2e-6)
    assert whole.shape == (3, 3)
    moved = np.asarray(told(variables, batch["tokens"], mask, 1 - batch["types"]))
    assert np.abs(moved - whole).max() > 1e-3


def test_another_pool_is_named() -> None:
    with pytest.raises(UserError, match=r"finetune.pool='last'.*first, mean"):
        jax.eval_shape(SentenceClassifier(3, BODY, "last").init, KEY, rows()["tokens"])


def test_the_body_begins_where_the_other_stage_ended() -> None:
    batch = rows()
    base = nn.unbox(jax.jit(BODY.init)(jax.random.key(7), batch["tokens"]))
    method = sentence_classifier(BODY, 3, Tuning(), 0, "encoder")
    assert method.needs == ("encoder",)
    boxed = jax.jit(method.init)(KEY, batch, {"encoder": base})
    kept = jax.tree_util.tree_leaves_with_path(boxed["params"]["body"])
    assert all(isinstance(path[-1], jax.tree_util.GetAttrKey) for path, _ in kept)
    params = nn.unbox(boxed)["params"]
    for name, leaf in params["body"].items():
        for mine, theirs in zip(
            jax.tree.leaves(leaf), jax.tree.leaves(base["params"][name]), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    # The head of hidden tokens is left behind.
    assert set(base["params"]) - set(params["body"]) == {"head", "head_norm", "bias"}
    anew = sentence_classifier(BODY, 3, Tuning(pretrained=False), 0, "encoder")
    assert anew.needs == ()
    other = nn.unbox(jax.jit(anew.init)(KEY, batch, {}))["params"]
    assert jax.tree.structure(other) == jax.tree.structure(params)
    assert np.abs(other["body"]["table"] - params["body"]["table"]).max() > 0


@pytest.mark.parametrize("classes", [3, 1])
def test_losses_are_those_of_the_labels(classes: int) -> None:
    method = sentence_classifier(BODY, classes, Tuning(dropout=0.0, pretrained=False), 0, "")
    batch = rows(np.float32 if classes == 1 else np.int32)
    variables = nn.unbox(jax.jit(method.init)(KEY, batch, {}))
    net = SentenceClassifier(classes, BODY)
    told = jax.jit(net.apply)(variables, batch["tokens"], batch["tokens"] != 0, batch["types"])
    logits, labels = np.asarray(told, np.float64), np.asarray(batch["label"])
    if classes == 1:
        costs = (logits[:, 0] - labels) ** 2
    else:
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        costs = -logs[np.arange(3), labels]
    value, _ = jax.jit(method.loss)(variables, KEY, batch, {})
    np.testing.assert_allclose(value, costs.mean(), rtol=1e-5)
    found = jax.jit(method.evaluate)(variables, KEY, batch, {})
    np.testing.assert_allclose(found["loss"].metric(), costs[:2].mean(), rtol=1e-5)
    if classes == 3:
        right = (logits.argmax(-1) == labels)[:2].mean()
        assert found["accuracy"].metric() == pytest.approx(right)
    else:
        assert "accuracy" not in found


def test_scores_are_no_classes() -> None:
    method, batch = sentence_classifier(BODY, 3, Tuning(pretrained=False), 0, ""), rows(np.float32)
    variables = nn.unbox(jax.eval_shape(method.init, KEY, batch, {}))
    with pytest.raises(UserError, match="labels are scores, not 3 classes: give --stage"):
        jax.eval_shape(method.loss, variables, KEY, batch, {})


def test_metrics_are_those_of_glue() -> None:
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, 200), rng.normal(size=(200, 2))
    logits[np.arange(200), labels] += 1.0
    told = logits.argmax(-1)
    tp, tn = ((told == k) & (labels == k) for k in (1, 0))
    fp, fn = ((told == k) & (labels != k) for k in (1, 0))
    tp, tn, fp, fn = (float(x.sum()) for x in (tp, tn, fp, fn))
    found = agreement_of(logits, labels)
    assert found["accuracy"] == pytest.approx((tp + tn) / 200)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / product**0.5)
    assert "f1" not in agreement_of(rng.normal(size=(9, 3)), np.arange(9) % 3)
    # One answer for all is worth nothing to a correlation.
    same = agreement_of(np.tile([1.0, 0.0], (200, 1)), labels)
    assert same["matthews"] == 0 and same["f1"] == 0
    with pytest.raises(ValueError, match="2 classes, and labels from 2 to 2"):
        agreement_of(logits, np.full(200, 2))


def test_correlations_of_scores() -> None:
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 6, 100).astype(np.float32)
    told = np.exp(scores + rng.normal(size=100) * 0.5)[:, None]
    found = agreement_of(told, scores)

    def ranked(x: np.ndarray) -> np.ndarray:
        return np.array([(x < y).sum() + ((x == y).sum() + 1) / 2 for y in x])

    pearson = np.corrcoef(told[:, 0], scores)[0, 1]
    spearman = np.corrcoef(ranked(told[:, 0]), ranked(scores))[0, 1]
    assert found == pytest.approx({"pearson": pearson, "spearman": spearman})
    assert agreement_of(np.ones((3, 1)), np.arange(3.0)) == {"pearson": 0.0, "spearman": 0.0}


def test_another_classifier_leaves_its_last_layer_behind() -> None:
    found = sentence_classifiers(BODY, 2, Tuning("rte", (("mnli", 3),)), 0, "encoder")
    assert [(name, method.needs) for name, method in found.items()] == [
        ("mnli", ("encoder",)),
        ("rte", ("mnli",)),
    ]
    batch = rows()
    learned = nn.unbox(
        jax.jit(SentenceClassifier(3, BODY).init)(jax.random.key(7), batch["tokens"])
    )
    params = nn.unbox(jax.jit(found["rte"].init)(KEY, batch, {"mnli": learned}))["params"]
    for name in ("body", "pooler"):
        mine, theirs = (jax.tree.leaves(tree[name]) for tree in (params, learned["params"]))
        for one, other in zip(mine, theirs, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert params["classifier"]["kernel"].shape == (16, 2)
    with pytest.raises(UserError, match="two stages are called encoder"):
        sentence_classifiers(BODY, 2, Tuning("encoder"), 0, "encoder")


def written(folder: Path, labels: int) -> Path:
    """A task of sentences of three digits, whose label the first one tells."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name, count in (("train.tsv", 64), ("dev.tsv", 20)):
        rows = rng.integers(0, 9, (count, 3)).tolist()
        lines = (f"{a} {b} {c}\t{a * labels // 9}" for a, b, c in rows)
        (folder / name).write_text("\n".join(["sentence\tlabel", *lines]))
    return folder


def test_one_run_tunes_what_another_has_learned(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(10)), "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    three, two = written(tmp_path / "three", 3), written(tmp_path / "two", 2)
    changes = {
        "data.tokenizer": f"wordpiece:{tmp_path / 'vocab.txt'}",
        "data.size": "8",
        "data.num_classes": "0",
        "data.examples": "0",
        "masking.token": "14",
        "model.width": "16",
        "encoder.depth": "1",
        "encoder.dtype": "float32",
        # What compiles sooner than Hydra.
        "encoder.mixer": "attention",
        "encoder.heads": "2",
        "model.positions": "8",
        "train.encoder.duration": "2 steps",
        "train.encoder.batch_size": "8",
        "train.mnli.duration": "2 steps",
    }
    first = configs.load("hydra:glue_mnli", {**changes, "data.source": f"glue:{three}"})
    places = [str(tmp_path / name) for name in ("base", "mnli", "rte")]
    commands.train(first, places[0], "encoder")
    commands.train(first, places[1], "mnli", base=places[0])
    changes |= {"train.rte.optimizer.lr": "3e-3", "train.rte.duration": "15 epochs"}
    second = configs.load("hydra:glue_rte", {**changes, "data.source": f"glue:{two}"})
    found = commands.train(second, places[2], "rte", base=places[1])["stages"]
    assert set(found) == {"rte"}
    numbers = found["rte"]["report"] | found["rte"]["test"]
    assert numbers["accuracy"] > 0.8 and numbers["f1"] > 0.5 and numbers["loss"] < 1
    assert numbers["matthews"] > 0.5
    wrong = configs.load("hydra:glue_rte", {**changes, "data.source": f"glue:{three}"})
    with pytest.raises(UserError, match=r"data.labels=2, but glue:.*three has 3 \(0, 1, 2\)"):
        commands.train(wrong, str(tmp_path / "wrong"), "rte", base=places[1])
