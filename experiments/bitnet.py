"""BitNet b1.58 Reloaded: weights of -1, 0 and 1 in small networks (2024, arXiv 2407.09527).

Claim     Ternary weights with the median or the mean as their scale match 16 bits in small vision
          networks of equal size, and in language models of twice the hidden size.
Evidence  Perceptrons of four widths and a small ViT on real digits, decoders of two widths on bytes
          of Python sources, against networks with the same norms and no rounding; 3 seeds, 24 min.
Command   bigr prove --config=bitnet:small
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax import pictures
from bigr_jax.api import Method, Network, Part, Sum
from bigr_jax.data.augment import to_float
from bigr_jax.errors import one_of
from bigr_jax.interop import packed
from bigr_jax.lab import plots
from bigr_jax.models.decoder_lm import DecoderLM
from bigr_jax.models.encoder import Encoder, PatchClassifier
from bigr_jax.models.mlp_classifier import MLPClassifier
from bigr_jax.models.resnet import ResNet
from bigr_jax.nn.ternary import WEIGHTS, Frozen, Ternary, codes, freeze, ternary, zeros
from bigr_jax.ops.ternary import MEASURES, ternary_quantise
from bigr_jax.tasks.classifier import classifier
from bigr_jax.tasks.next_token import next_tokens
from bigr_jax.train.loop import scope
from bigr_jax.train.state import zeros_like_spec

NARROW, WIDE = 32, 64
# fmt: off
TASKS = {
    "digits": {},
    "vit": {"model.family": "vit", "ternary.keep": "^(embed|head)$",
            "train.net.duration": "1500 steps"},
    # Without rounding the loss is the same from 3e-3 to 1e-2, with it the latter is better.
    "text": {"model.family": "lm", "data.source": "text:python", "data.size": "65",
             "train.net.duration": "600 steps", "train.net.batch_size": "32",
             "train.net.optimizer.lr": "1e-2"},
}
# The kinds of weights and the widths that are compared beside the perceptrons on digits.
COMPARED = {
    "vit": (("fp", NARROW), ("median", NARROW), ("mean", NARROW)),
    "text": (("fp", NARROW), ("median", NARROW), ("median", WIDE)),
}
# fmt: on
COLOURS = np.array([(0, 114, 178), (228, 228, 228), (230, 159, 0)], np.uint8)


def network(config: Any) -> nn.Module:
    """Returns the plain network of a config. Raises UserError for an unknown family."""
    data, model = config.data, config.model
    classes, width, depth, heads = data.num_classes, model.width, model.depth, model.heads
    hidden, how = round(model.expand * width), {"remat": model.remat, "unroll": model.unroll}
    how |= {"dropout": model.dropout, "dtype": model.dtype}
    encoder = Encoder(depth, "attention", heads=heads, hidden=hidden, **how)
    nets = {
        "mlp": MLPClassifier(classes, (width,) * depth, model.dtype),
        "vit": PatchClassifier(classes, width, model.patch, encoder, True, model.dtype),
        "resnet": ResNet(classes, (depth,) * 3, (width, 2 * width, 4 * width), dtype=model.dtype),
        "lm": DecoderLM(classes, width, depth, heads, hidden, model.tied, **how),
    }
    if model.family not in nets:
        raise one_of("config.model.family", model.family, nets)
    return nets[model.family]


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: a classifier or a language model, its weights as `ternary` says."""
    net = ternary(network(config), **dict(config.ternary.items()))
    how = {"smoothing": config.model.smoothing, "augmentation": config.data.augment}
    if config.model.family == "lm":
        method = next_tokens(net)
    else:
        method = classifier(net, **how)
        part = Part(net, {"params": (), "batch_stats": ()})
        method = method._replace(model=Network((part,)))
    if not isinstance(net, Ternary) or net.weights == "fp":
        return {"net": method}

    def evaluate(variables: Any, key: Any, batch: Any, given: Any) -> dict[str, Sum]:
        frozen = freeze(variables, net.matrices(key, seen(batch)), net.weights)
        told = method.evaluate(variables, key, batch, given)
        return {**told, "zeros": Sum(*zeros(frozen))}

    return {"net": method._replace(evaluate=evaluate)}


def seen(batch: Any) -> Any:
    """Returns what the network is called with."""
    return batch["tokens"][:, :-1] if "tokens" in batch else to_float(batch["image"])


def study(config: Any, lab: Any) -> None:
    """Trains every kind of weights at every width, and some in a ViT and in decoders of text."""
    kinds, widths = [*lab.arms({kind: {} for kind in WEIGHTS})], config.study.widths
    tasks: tuple[str, ...] = config.study.tasks
    if unknown := set(tasks) - TASKS.keys():
        raise one_of("config.study.tasks", min(unknown), TASKS)
    for seed in lab.seeds:
        for kind in kinds if "digits" in tasks else ():
            found = [_trained(lab, "digits", kind, width, seed) for width in widths]
            for width, accuracy in zip(widths, found, strict=True):
                lab.record(kind, f"digits/{width}", accuracy, seed)
            lab.record(kind, "digits", float(np.mean(found)), seed)
            if len(widths) > 1:  # "fp" at half the width of the others
                compared = found[:-1] if kind == "fp" else found[1:]
                lab.record(kind, "digits, twice as wide", float(np.mean(compared)), seed)
        for task in tasks:
            for kind, width in (pair for pair in COMPARED.get(task, ()) if pair[0] in kinds):
                told = _trained(lab, task, kind, width, seed)
                lab.record(_name(task, kind, width), task, told, seed)
    if "digits" in tasks:
        values = {kind: [lab.values(kind, f"digits/{w}") for w in widths] for kind in kinds}
        curves = {k: np.array([[v[s] for v in values[k]] for s in lab.seeds]) for k in kinds}
        lab.figure("widths", plots.lines("Digits", widths, curves, "hidden width", "accuracy"))
    _claim(lab, kinds, widths, tasks)


def _name(task: str, kind: str, width: int) -> str:
    return f"{task}: {kind}, {width} wide"


def _trained(lab: Any, task: str, kind: str, width: int, seed: int) -> float:
    """Returns the accuracy, of text the loss, on the test split of one trained arm."""
    arm = _name(task, kind, width)
    changes = {**TASKS[task], "model.width": str(width), "ternary.weights": kind}
    run = lab.train(arm, changes, seed)
    found = run.results()["stages"]["net"]["test"]
    if kind in MEASURES and (task != "digits" or width == lab.config.study.widths[-1]):
        lab.record(arm, "zeros", found["zeros"], seed)
        if seed == 0:
            lab.measure(arm, seed, lambda: measured(run))
    if (task, kind, width, seed) == ("digits", "median", lab.config.study.widths[-1], 0):
        kernel, side = run.variables("net")["params"]["hidden_0"]["kernel"], run.config.data.size
        code = np.asarray(ternary_quantise(kernel, "median")[0]).astype(int).T[:48]
        lab.figure(
            "weights", pictures.grid(COLOURS[code + 1].reshape(-1, side, side, 3), 12, gap=6)
        )
    return float(found["loss" if task == "text" else "accuracy"])


def measured(run: Any) -> dict[str, float]:
    """Returns the share of the codes that have changed since the start, the bytes of a packed file
    and of the variables in float32, and the largest difference of the logits of that file.
    """
    net, variables = run.methods["net"].model.parts[0].module, run.variables("net")
    matrices = net.matrices(jax.random.key(0), seen(zeros_like_spec(run.batch_spec("net"))))
    frozen = jax.jit(lambda variables: freeze(variables, matrices, net.weights))
    rows = run.sources["test"].gather(np.arange(256) % len(run.sources["test"]))
    with tempfile.TemporaryDirectory() as folder, scope(run.mesh):
        before, after = frozen(run.plan("net").create({}).variables), frozen(variables)
        path = os.path.join(folder, "net.safetensors")
        packed.save(path, after)
        size, loaded = os.path.getsize(path), packed.load(path)
        inputs = seen({name: jnp.asarray(row) for name, row in rows.items()})
        wanted = jax.tree.leaves(jax.jit(net.apply)(variables, inputs))[0]
        given = jax.tree.leaves(jax.jit(Frozen(net.net, net.bits).apply)(loaded, inputs))[0]
    moved = [np.not_equal(*pair) for pair in zip(codes(before), codes(after), strict=True)]
    return {
        "changed": float(np.concatenate(moved, None).mean()),
        "bytes": size,
        "bytes in float32": 4.0 * sum(leaf.size for leaf in jax.tree.leaves(variables)),
        "difference": float(jnp.abs(wanted - given).max()),
    }


def _claim(lab: Any, kinds: list[str], widths: tuple[int, ...], tasks: tuple[str, ...]) -> None:
    for kind in ("median", "mean") if "digits" in tasks else ():
        lab.claim(f"digits: {kind} is within a point of fp", "digits", kind, "fp", margin=-0.01)
        if len(widths) > 1:
            text = f"digits: {kind} at twice the width is better than fp"
            lab.claim(text, "digits, twice as wide", kind, "fp")
        other = "mean" if kind == "median" else "median"
        text = f"digits: {kind} is at most 1.5 points below {other}"
        lab.claim(text, "digits", kind, other, margin=-0.015)
    if not {"fp", "median", "mean"} <= set(kinds):
        return
    for kind in ("median", "mean") if "vit" in tasks else ():
        one, other = _name("vit", kind, NARROW), _name("vit", "fp", NARROW)
        lab.claim(f"ViT: {kind} is within a point of fp", "vit", one, other, margin=-0.01)
    if "text" in tasks:
        full = _name("text", "fp", NARROW)
        narrow, wide = (_name("text", "median", width) for width in (NARROW, WIDE))
        text = "text: median at twice the width is at most 0.02 above fp"
        lab.claim(text, "text", wide, full, lower=True, margin=-0.02)
        lab.claim("text: at equal width fp is better", "text", full, narrow, lower=True)
        text = "text: a packed network gives the trained logits"
        lab.claim(text, "difference", wide, 1e-6, lower=True)
