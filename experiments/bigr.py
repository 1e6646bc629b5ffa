"""BiGR: masked modelling of binary image codes, for drawing and features (2024, arXiv 2410.14672).

Claim     BiGR-L: FID-50k 2.71 on ImageNet 256 with 336M parameters; LlamaGen-L: 3.81 with 343M.
Evidence  On real digits, 3 seeds: flip against z0 and direct targets, entropy order against random
          and raster, drawn against rounded bits, and an autoregressive transformer on the same
          codes; by Frechet distance in a classifier's features, linear probes, bits per image.
Command   bigr prove --config=bigr:small
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.api import Array, Aux, Batch, Given, Method, Report, Sum, Variables
from bigr_jax.config import build
from bigr_jax.data.augment import augment, to_float
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.generate.codes import sample_codes
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitLoss, BitObjective, draw, transcoder_loss
from bigr_jax.metrics.code_length import code_length
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.convnet import ConvNet
from bigr_jax.nn.embed import drop_labels
from bigr_jax.ops.bernoulli import Schedule, make_schedule
from bigr_jax.ops.masking import cosine_mask
from bigr_jax.tasks.autoencoder import autoencoder, decode, encode
from bigr_jax.tasks.classifier import classifier
from bigr_jax.tasks.drawing import drawing_report, probe_report

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
    found, settings = {"tokenizer": task.method()}, config.referee
    net = ConvNet(data.num_classes, settings.widths)
    referee = classifier(net, augmentation=settings.augment, smoothing=settings.smoothing)
    if settings.enabled:
        found["referee"] = referee
    found["generator"] = generator(config, tokenizer, net if settings.enabled else None).method()
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


@dataclasses.dataclass(frozen=True)
class Generator:
    """BiGR on the codes of a trained tokenizer: transformer, transcoder and sampler."""

    net: BiGR
    tokenizer: BinaryAutoencoder
    referee: ConvNet | None
    objective: BitObjective
    schedule: Schedule
    sampling: MaskedSampling
    label_drop: float
    mask_per_batch: bool
    augmentation: str
    per_class: int
    probed: bool

    def method(self) -> Method:
        """Returns the pure functions that the trainer takes."""
        needs = ("tokenizer",) if self.referee is None else ("tokenizer", "referee")
        return Method(
            self.init, self.loss, self.evaluate, needs, sample=self.sample, report=self.report
        )

    def init(self, key: Array, batch: Batch, given: Given) -> Variables:
        """See `Method`."""
        rows = (len(batch["label"]), self.net.length)
        empty, t = jnp.zeros((*rows, self.net.bits)), jnp.ones(rows, jnp.int32)
        return self.net.init(key, empty, batch["label"], t > 0, empty, t)

    def loss(self, variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        """See `Method`; on drawn codes, with labels dropped for guidance."""
        keys = jax.random.split(key, 5)
        images = augment(keys[0], to_float(batch["image"]), self.augmentation)
        labels = drop_labels(keys[1], batch["label"], self.net.num_classes, self.label_drop)
        codes = jax.lax.stop_gradient(encode(self.tokenizer, given["tokenizer"], images, keys[2]))
        found, _ = self.compared(variables, keys[3], codes, labels, {"dropout": keys[4]})
        return found.loss, Aux({"bit_accuracy": found.accuracy})

    def evaluate(self, variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        """See `Method`; the objective per masked token, and a bound on the bits of an image."""
        codes = encode(self.tokenizer, given["tokenizer"], to_float(batch["image"]))
        labels, rows = self.asked(batch["label"]), batch["mask"]
        found, mask = self.compared(variables, key, codes, labels)
        loss = Sum((found.per_bit.mean(-1) * mask * rows[:, None]).sum(), (mask.T * rows).sum())
        bits = code_length(self.net, variables, key, codes, labels, self.schedule)
        return {"loss": loss, "bits_per_image": Sum((bits * rows).sum(), rows.sum())}

    def sample(self, variables: Any, key: Array, labels: Array, given: Given) -> Array:
        """See `Method`; classes to images, by the confidence-ordered sampler."""
        how = (self.schedule, self.sampling)
        codes = sample_codes(self.net, variables, key, self.asked(labels), *how)
        return decode(self.tokenizer, given["tokenizer"], codes)

    def report(self, variables: Any, key: Array, data: Any, given: Given) -> Report:
        """See `Method`; a row of samples per class, what the referee says, and linear probes."""
        read: Any = self.referee and functools.partial(self.referee.apply, given["referee"])
        found = drawing_report(
            lambda labels: sample_in_batches(self.sample, variables, key, labels, given, 100),
            data,
            np.repeat(np.arange(self.net.num_classes), self.per_class),
            read,
            conditional=self.label_drop < 1,
        )
        if not self.probed:
            return found
        codes = functools.partial(encode, self.tokenizer, given["tokenizer"])
        pooled: Any = functools.partial(self.net.apply, variables, method="pooled")
        return Report({**found.metrics, **probe_report(codes, pooled, data)}, found.images)

    def asked(self, labels: Array) -> Array:
        """Returns the labels, or where none is ever shown in training, the null class."""
        return labels if self.label_drop < 1 else jnp.full_like(labels, self.net.num_classes)

    def compared(
        self, variables: Any, key: Array, codes: Array, labels: Array, rngs: Any = None
    ) -> tuple[BitLoss, Array]:
        """Returns the objective of predicting masked codes [B, N, K], and the mask [B, N]."""
        mask_key, draw_key = jax.random.split(key)
        mask = cosine_mask(mask_key, *codes.shape[:2], per_batch=self.mask_per_batch)
        if self.net.causal:
            mask = jnp.ones_like(mask)
        t, x_t = draw(draw_key, codes, self.schedule, self.net.target)
        inputs = (codes, labels, mask, x_t, t)
        logits: Any = self.net.apply(variables, *inputs, deterministic=not rngs, rngs=rngs)
        found = transcoder_loss(logits, codes, x_t, t, self.schedule, mask, self.objective)
        return found, mask


def generator(config: Any, tokenizer: BinaryAutoencoder, referee: ConvNet | None) -> Generator:
    """Returns the generator of a config, on a tokenizer, judged by a referee."""
    grid, classes = (tokenizer.grid, tokenizer.grid), config.data.num_classes
    times = {"flip": config.diffusion.steps, "z0": config.diffusion.steps, "direct": 1}
    net = build(BiGR, config.model, bits=tokenizer.bits, grid=grid, num_classes=classes)
    return Generator(
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
