"""Hydra: two-sided state-space mixing by quasiseparable matrices (2024, arXiv 2407.09941).

Claim     GLUE 84.3 against BERT-base's 83.5, masked accuracy on C4 69.1 against 67.3 %; ImageNet
          81.0 against ViT-B's 78.8 %.
Evidence  Mixers at one number of parameters, 3 seeds: recall of pairs from both sides, hidden bytes
          of Python sources, and real digits without positions.
Command   bigr prove --config=hydra:small
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from bigr_jax.api import Method
from bigr_jax.config import build
from bigr_jax.models.encoder import Encoder, MaskedModel, PatchClassifier
from bigr_jax.tasks.classifier import classifier
from bigr_jax.tasks.masked_tokens import Masking, masked_tokens
from bigr_jax.tasks.sentences import Tuning, sentence_classifiers

# After the paper's: one direction, its baselines of two (Tables 3 and 10), and the matrices of
# Table 2, made from the data (dd) or learned (di).
MIXERS = ("hydra", "causal", "add", "mult", "concat", "add_diagonal", "add_shift", "attention",
          "linear_attention", "fnet", "dense_di", "toeplitz_di", "toeplitz_dd", "dft_di",
          "vandermonde_dd", "cauchy_di", "cauchy_dd", "low_rank_di", "low_rank_dd", "attention_di",
          "attention_dd", "quasiseparable_di", "quasiseparable_dd")  # fmt: skip
# Those that do not see by themselves where a token stands.
PLACED = ("attention", "linear_attention", "fnet")
# Of each task what it changes, and the mixers that are compared on it; () compares all.
TASKS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "recall": ({}, ()),
    "text": (
        {
            "data.source": "text:python",
            "data.size": "64",
            "mixer.length": "64",
            "masking.rate": "0.15",
            "train.encoder.duration": "500 steps",
            "train.encoder.batch_size": "16",
        },
        ("hydra", "causal", "add", "add_diagonal", "attention", "dense_di"),
    ),
    "digits": (
        {
            "data.source": "digits",
            "data.size": "8",
            "mixer.length": "64",
            "model.patch": "1",
            "model.positions": "0",
            "train.encoder.duration": "500 steps",
        },
        ("hydra", "causal", "add", "attention"),
    ),
}
# (text, task, better, than, by how much at least)
CLAIMS = (
    ("Hydra recalls from both sides", "recall", "hydra", 0.95, 0.0),
    ("one direction recalls at most from one side", "recall", 0.55, "causal", 0.0),
    ("no matrix that was learned recalls: dense", "recall", 0.3, "dense_di", 0.0),
    ("no matrix that was learned recalls: Toeplitz", "recall", 0.3, "toeplitz_di", 0.0),
    ("no matrix that was learned recalls: low rank", "recall", 0.3, "low_rank_di", 0.0),
    ("Hydra tells bytes better than the sum of two directions", "text", "hydra", "add", 0.04),
    ("Hydra tells bytes better than one direction", "text", "hydra", "causal", 0.08),
    ("Hydra reads digits better than one direction", "digits", "hydra", "causal", 0.0),
    ("Hydra reads digits better than attention without positions", "digits", "hydra", "attention",
     0.0),
)  # fmt: skip


def stages(config: Any) -> dict[str, Method]:
    """Returns an encoder that tells hidden tokens, where asked for with a classifier of sentences
    made of it; or one that classifies images.
    """
    tune = build(Tuning, config.finetune)
    data, model, masking = config.data, config.model, build(Masking, config.masking)
    options = {"options": dict(config.mixer.items())}
    encoder = build(Encoder, config.encoder, **options)
    # All is read for either kind of data: what it has no use for is no misspelt key.
    names = ("types", "positions", "dropout", "epsilon", "spread")
    sizes = {name: model[name] for name in names}
    recipe = {name: model[name] for name in ("smoothing", "mixup", "cutmix")}
    augmentation = data.augment
    classes, width, dtype = data.num_classes, model.width, encoder.dtype
    if model.patch:
        net = PatchClassifier(classes, width, model.patch, encoder, bool(model.positions), dtype)
        return {"encoder": classifier(net, augmentation=augmentation, **recipe)}
    told = MaskedModel(classes, width, encoder, **sizes, dtype=dtype)
    found = {"encoder": masked_tokens(told, masking)}
    if data.labels:
        found |= sentence_classifiers(told, data.labels, tune, masking.padding, "encoder")
    return found


def study(config: Any, lab: Any) -> None:
    """Trains every mixer on every task, for as many steps, and compares their accuracies."""
    places = {"model.positions": "64"}
    arms = lab.arms(
        {name: {"encoder.mixer": name, **(places if name in PLACED else {})} for name in MIXERS}
    )
    for task in config.study.tasks:
        changes, compared = TASKS[task]
        chosen = {
            name: {**own, **changes}
            for name, own in arms.items()
            if not compared or name in compared
        }
        for mixer, whole in equalised(lab, task, chosen).items():
            for seed in lab.seeds:
                run = lab.train(f"{mixer} on {task}", whole, seed)
                found = run.results()["stages"]["encoder"]["test"]
                lab.record(mixer, task, found["accuracy"], seed)
                lab.record(mixer, f"{task}: parameters", parameters(run), seed)
    for text, task, better, than, margin in CLAIMS:
        if task in config.study.tasks:
            lower = not isinstance(better, str)
            arm, other = (than, better) if lower else (better, than)
            lab.claim(text, task, arm, other, lower=lower, margin=margin)


def equalised(
    lab: Any, task: str, arms: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Returns the changes of each arm with those that bring all to the parameters of the largest: a
    feed-forward layer after every mixer fills what that leaves.
    """
    runs = {name: lab.run(f"{name} on {task}", own) for name, own in arms.items()}
    largest, found = max(map(parameters, runs.values())), {}
    for name, run in runs.items():
        depth, width = run.config.encoder.depth, run.config.model.width
        # A layer with h hidden features: (2 width + 1) h + width, and 2 width of its norm.
        each = (largest - parameters(run)) / depth
        hidden = max(0, round((each - 3 * width) / (2 * width + 1)))
        found[name] = {**arms[name], "encoder.hidden": str(hidden)}
    return found


def parameters(run: Any) -> int:
    """Returns the number of an encoder's parameters."""
    shapes = run.plan("encoder").abstract.variables["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
