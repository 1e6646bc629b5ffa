"""BiGR: masked modelling of binary image codes, for drawing and features (2024, arXiv 2410.14672).

Claim     BiGR-L: FID-50k 2.71 on ImageNet 256 with 336M parameters; LlamaGen-L: 3.81 with 343M.
Evidence  On real digits, 3 seeds: flip against z0 and direct targets, entropy order against random
          and raster, drawn against rounded bits, and an autoregressive transformer on the same
          codes; by Frechet distance in a classifier's features, linear probes, bits per image.
Command   bigr prove --config=bigr:small
"""

from __future__ import annotations

import functools
from typing import Any

from bigr_jax.api import Method
from bigr_jax.config import build
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitObjective
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.convnet import ConvNet
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.tasks.autoencoder import autoencoder
from bigr_jax.tasks.captions import caption_reader
from bigr_jax.tasks.classifier import classifier
from bigr_jax.tasks.code_generator import CodeGenerator
from bigr_jax.tasks.sizes import at_sizes

# What each arm changes; all else, steps and data too, is the same. For BiGR, z0, direct and
# autoregressive alike, the config's learning rate was the best of a half, one and two times it.
ARMS = {
    "BiGR": {},
    "z0": {"model.target": "z0", "objective.loss": "bce"},
    "direct": {"model.target": "direct", "objective.loss": "bce"},
    "random order": {"sample.order": "random"},
    "raster order": {"sample.order": "raster"},
    "rounded bits": {"sample.deterministic": "true"},
    "unconditional": {"masking.label_drop": "1.0"},
    "autoregressive": {"model.mixer": "causal_attention"},
}
# (text, metric, better, than, the lower the better); the paper's ablations and its LlamaGen row.
CLAIMS = (
    ("predicting flips draws better than predicting z0", "frechet", "BiGR", "z0"),
    ("predicting z0 draws better than predicting the bits at once", "frechet", "z0", "direct"),
    ("entropy order draws better than random order", "frechet", "BiGR", "random order"),
    ("entropy order draws better than raster order", "frechet", "BiGR", "raster order"),
    ("drawn bits are better than rounded ones", "frechet", "BiGR", "rounded bits"),
    ("a class draws better than none", "frechet", "BiGR", "unconditional"),
    ("masked modelling draws better than autoregression", "frechet", "BiGR", "autoregressive"),
    ("its features are better than an autoregressive model's", "probe", "BiGR", "autoregressive"),
    ("its features are better than the pixels", "probe", "BiGR", "pixels"),
    ("its features are better than the tokenizer's bits", "probe", "BiGR", "codes"),
)


def stages(config: Any) -> dict[str, Method]:
    """Returns the tokenizer, the referee where enabled, and the generator on the codes."""
    data = config.data
    tokenizer = build(
        BinaryAutoencoder, config.tokenizer, image_size=data.size, channels=data.channels
    )
    task = autoencoder(tokenizer, config.tokenizer_loss, config.train.tokenizer, data)
    found, net = {"tokenizer": at_sizes(task, data.sizes)}, None
    if config.referee.enabled:
        net, found["referee"] = referee(config)
    found["generator"] = at_sizes(generator(config, tokenizer, net), data.sizes)
    return found


def study(config: Any, lab: Any) -> None:
    """Trains the arms on one tokenizer and compares them."""
    budget = {"train.generator.duration": config.study.duration}
    for seed in lab.seeds:
        for arm, changes in lab.arms(ARMS).items():
            run = lab.train(arm, {**budget, **changes}, seed, stage="generator")
            found = lab.measure(arm, seed, functools.partial(run.measured, "generator"))
            for name in ("pixels", "codes"):
                lab.record(name, "probe", found[f"probe_{name}"], seed)
    for text, metric, better, than in CLAIMS:
        lab.claim(text, metric, better, than, lower=metric == "frechet")


def generator(config: Any, tokenizer: BinaryAutoencoder, referee: ConvNet | None) -> CodeGenerator:
    """Returns the generator of a config, on a tokenizer, judged by a referee."""
    grid, classes = (tokenizer.grid, tokenizer.grid), config.data.num_classes
    times = {"flip": config.diffusion.steps, "z0": config.diffusion.steps, "direct": 1}
    net = build(BiGR, config.model, bits=tokenizer.bits, grid=grid, num_classes=classes)
    return CodeGenerator(
        net,
        tokenizer,
        referee,
        build(BitObjective, config.objective, target=net.target),
        make_schedule(config.diffusion.schedule, times[net.target]),
        build(MaskedSampling, config.sample),
        config.masking.label_drop,
        config.masking.per_batch,
        config.data.augment,
        config.report.per_class,
        config.report.probe,
    )


def referee(config: Any) -> tuple[ConvNet, Method]:
    """Returns who reads what was drawn, a classifier or a reader of captions, and its training."""
    settings, text = config.referee, config.model.text
    net = ConvNet(text[1] if text else config.data.num_classes, settings.widths)
    task = caption_reader if text else classifier
    return net, task(net, augmentation=settings.augment, smoothing=settings.smoothing)
