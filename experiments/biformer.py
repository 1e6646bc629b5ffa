"""BiFormer: vision transformers with bi-level routing attention (2023, arXiv 2303.08810).

Claim     ImageNet-1K 81.4 / 83.8 / 84.3 % with 13 / 26 / 57 M parameters; in Swin-T's layout 82.7
          against 81.3 %; ADE20K 48.9 / 49.9 mIoU with Semantic FPN.
Evidence  Kinds of attention that see as many keys, 3 seeds: digits, segmentation of tiles on
          photographs, and finding the region that matches.
Command   bigr prove --config=biformer:small
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bigr_jax import pictures
from bigr_jax.api import Method, Network, Part
from bigr_jax.config import build
from bigr_jax.errors import one_of
from bigr_jax.models.biformer import BiFormer, Block, Pyramid
from bigr_jax.models.semantic_fpn import MapTagger, SemanticFPN
from bigr_jax.ops import flops
from bigr_jax.tasks.classifier import classifier
from bigr_jax.tasks.segmentation import segmenter

# Every query sees a quarter of the map, 64 of 256 tokens or 36 of 144, unless the arm says k or
# dense.
ARMS = {
    "routed": {},
    "windows": {"model.attention": "windows", "model.regions": "2"},
    "dilated": {"model.attention": "dilated", "model.regions": "2"},
    "stripes": {"model.attention": "stripes"},
    "pooled": {"model.attention": "pooled"},
    "dense, one layer": {"model.attention": "dense", "model.depths": "(1, 1)"},
    "dense": {"model.attention": "dense"},
    "routed, k=1": {"model.topk": "(1, 0)"},
    "routed, k=2": {"model.topk": "(2, 0)"},
    "routed, k=8": {"model.topk": "(8, 0)"},
    "routed, 2x2 regions": {"model.regions": "2", "model.topk": "(1, 0)"},
    "routed, 6x6 regions": {"model.regions": "6", "model.topk": "(9, 0)"},
}
# Here the map is of 8 x 8 and there is one stage; windows are the regions that are not routed.
MATCHING = {
    "routed": {"model.topk": "(4,)"},
    "routed, k=1": {"model.topk": "(1,)"},
    "routed, k=2": {"model.topk": "(2,)"},
    "windows": {"model.topk": "(1,)", "model.attention": "windows"},
    "dense": {"model.topk": "(1,)", "model.attention": "dense"},
}
SCENES = {
    "data.source": "tiles:mnist5k",
    "data.size": "48",
    "data.channels": "1",
    "head.kind": "segments",
    "model.stem": "4",
    "train.model.duration": "800 steps",
}
SHAPES = {
    "data.source": "matching",
    "data.size": "8",
    "head.kind": "tags",
    "model.depths": "(2,)",
    "model.widths": "(32,)",
    "model.heads": "(4,)",
    "train.model.duration": "1000 steps",
    "train.model.batch_size": "64",
    "train.model.optimizer.lr": "3e-3",
}
KINDS = list(ARMS)[:7]
# Of each task: what it is measured by, what it changes, and the arms that are compared on it.
TASKS: dict[str, tuple[str, dict[str, str], dict[str, dict[str, str]]]] = {
    "digits": ("accuracy", {}, {arm: ARMS[arm] for arm in KINDS}),
    "scenes": ("mean_iou", SCENES, ARMS),
    "matching": ("accuracy", SHAPES, MATCHING),
}
# Of three labels of eight, drawn apart, the commonest is so often the one that is asked for:
# what is reached by looking at all and matching none.
SHOWN = 0.453
# (text, task, better, than, by how much at least)
CLAIMS = (
    *((f"routed attention tells digits better than {arm}", "digits", "routed", arm, 0.0)
      for arm in KINDS[1:6]),
    *((f"routed attention segments better than {arm}", "scenes", "routed", arm, 0.0)
      for arm in KINDS[1:6]),
    ("four regions segment better than one", "scenes", "routed", "routed, k=1", 0.0),
    ("routes find the region that matches", "matching", "routed", "windows", 0.15),
    ("routes tell more than the labels that are shown", "matching", "routed", SHOWN, 0.0),
    ("more routes find more", "matching", "routed", "routed, k=1", 0.0),
)  # fmt: skip


def stages(config: Any) -> dict[str, Method]:
    """Returns the one stage: a network that classifies images, or the places of a map."""
    data, model, head = config.data, config.model, config.head
    # All is read for every kind: what it has no use for is no misspelt key.
    classes, kind, augmentation = data.num_classes, head.kind, data.augment
    mixing = {"mixup": head.mixup, "cutmix": head.cutmix}
    how = {"augmentation": augmentation, "smoothing": head.smoothing}
    sizes = {name: head[name] for name in ("width", "head_width", "dropout")}
    places: dict[str, tuple[str, ...]] = {"params": (), "batch_stats": ()}
    if kind == "classes":
        net: Any = build(BiFormer, model, classes=classes)
        found, part = classifier(net, **how, **mixing), Part(net, places)
    elif kind == "segments":
        backbone = build(Pyramid, model)
        net = SemanticFPN(classes, backbone, **sizes, dtype=backbone.dtype)
        part = Part(backbone, dict.fromkeys(places, ("backbone",)))
        found = segmenter(net, **how)
    elif kind == "tags":
        body = build(Pyramid, model)
        net = MapTagger(
            classes, body.depths[0], Block(*body.kind(0), body.ratio, False, body.dtype)
        )
        found, part = segmenter(net, **how), Part(net, places)
    else:
        raise one_of("config.head.kind", kind, ("classes", "segments", "tags"))
    return {"model": found._replace(model=Network((part,)))}


def study(config: Any, lab: Any) -> None:
    """Trains every kind of attention on every task for as many steps, and compares them."""
    wanted = lab.arms(ARMS)
    for seed in lab.seeds:
        for task in config.study.tasks:
            metric, changes, compared = TASKS[task]
            for arm, own in compared.items():
                if arm not in wanted:
                    continue
                run = lab.train(f"{arm}, {task}", {**changes, **own}, seed)
                found = run.results()["stages"]["model"]["test"]
                lab.record(arm, task, found[metric], seed)
                lab.record(arm, f"{task}: MFLOPs", operations(run) / 1e6, seed)
                if (arm, task, seed) == ("routed", "scenes", 0):
                    lab.figure("routes", routes_picture(run))
    for text, task, better, than, margin in CLAIMS:
        if task in config.study.tasks:
            lab.claim(text, task, better, than, margin=margin)


def operations(run: Any) -> float:
    """Returns the floating-point operations of one example, forward."""
    batch, variables = run.batch_spec("model"), run.plan("model").abstract.variables
    traced = jax.make_jaxpr(run.methods["model"].evaluate)(variables, jax.random.key(0), batch, {})
    return flops.count(traced) / len(batch["mask"])


def routes_picture(run: Any, count: int = 6) -> np.ndarray:
    """Returns test images with a region (white) and those that it is routed to (orange), uint8 [H,
    W, 3]; a row for every layer that routes.
    """
    images = run.sources["test"].gather(np.arange(count))["image"]
    regions = run.config.model.regions
    # A region in the middle of the image.
    query = (regions // 2) * (regions + 1)
    tiles = [
        pictures.marked(image, regions, query, chosen)
        for layer in routes(run, images)
        for image, chosen in zip(images, layer[:, query], strict=True)
    ]
    return pictures.grid(np.stack(tiles), count, scale=1)


def routes(run: Any, images: np.ndarray) -> np.ndarray:
    """Returns the regions that every region of uint8 images [N, h, w, c] is routed to in the first
    stage of a network that segments, int [layers, N, regions ** 2, topk].
    """
    backbone = run.methods["model"].model.parts[0].module
    variables = {name: tree["backbone"] for name, tree in run.variables("model").items()}
    _, seen = backbone.apply(variables, images / np.float32(255), mutable=["intermediates"])
    return np.asarray(seen["intermediates"]["stage_0"]["attention"]["routes"][0])
