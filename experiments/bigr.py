"""BiGR: masked modelling of binary image codes, for drawing and features (2024, arXiv 2410.14672).

Claim     BiGR-L: FID-50k 2.71 on ImageNet 256 with 336M parameters; LlamaGen-L: 3.81 with 343M.
Evidence  Digits drawn class by class, learnt from 4,000 real ones, are read as the class asked for
          by a classifier trained apart; CPU minutes. Entropy order against random order: study.
Command   bigr train --config=bigr:small
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax import durations, pictures
from bigr_jax.api import Array, Aux, Batch, Given, Method, Report, Sum, Variables
from bigr_jax.config import build
from bigr_jax.data.augment import augment, to_float
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.generate.draws import KeyDraws
from bigr_jax.generate.guidance import pair
from bigr_jax.generate.masked import MaskedSampling, Steps, sample_masked
from bigr_jax.interop.files import read
from bigr_jax.losses.bits import BitLoss, BitObjective, draw, transcoder_loss
from bigr_jax.losses.perceptual import perceptual
from bigr_jax.metrics.agreement import agreement
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.convnet import ConvNet
from bigr_jax.models.patch_discriminator import PatchDiscriminator
from bigr_jax.nn.embed import drop_labels
from bigr_jax.ops.bernoulli import Schedule, make_schedule
from bigr_jax.ops.masking import cosine_mask
from bigr_jax.tasks.autoencoder import Adversary, AutoencoderTask
from bigr_jax.tasks.classifier import classifier


def stages(config: Any) -> dict[str, Method]:
    """Returns the tokenizer, the referee where enabled, and the generator on the codes."""
    data = config.data
    tokenizer = build(
        BinaryAutoencoder, config.tokenizer, image_size=data.size, channels=data.channels
    )
    found, settings = {"tokenizer": tokenizer_task(config, tokenizer).method()}, config.referee
    net = ConvNet(data.num_classes, settings.widths)
    referee = classifier(net, augmentation=settings.augment, smoothing=settings.smoothing)
    if settings.enabled:
        found["referee"] = referee
    found["generator"] = generator(config, tokenizer, net if settings.enabled else None).method()
    return found


def study(config: Any, lab: Any) -> None:
    """Compares entropy order with random order on one trained generator, over sampling seeds."""
    for order in ("entropy", "random"):
        run = lab.train(order, {"sample.order": order})
        for seed in range(config.study.seeds):
            found = run.report("generator", seed)
            lab.record(order, "agreement", found.metrics["agreement"], seed)
        lab.figure(order, found.images["samples"])
    text = "digits drawn in entropy order are read as the class asked for more often than in random"
    lab.claim(text, "agreement", "entropy", "random")


def tokenizer_task(config: Any, net: BinaryAutoencoder) -> AutoencoderTask:
    """Returns the tokenizer's training: L1, and where asked for LPIPS and a discriminator."""
    loss, train = config.tokenizer_loss, config.train.tokenizer
    weights = read(loss.perceptual_weights) if loss.perceptual_weights else None
    size = {"batch_size": train.batch_size, "examples": config.data.examples}
    total = durations.steps(train.duration, key="train.tokenizer.duration", **size)
    start = durations.steps(loss.disc_start, key="tokenizer_loss.disc_start", total=total, **size)
    disc = PatchDiscriminator(loss.disc_filters, loss.disc_layers, config.data.channels)
    adversary = Adversary(disc, loss.disc_weight, start)
    return AutoencoderTask(
        net,
        perceptual(loss.perceptual, weights),
        loss.perceptual_weight,
        adversary if loss.adversarial else None,
        config.data.augment,
    )


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
        codes = jax.lax.stop_gradient(self.codes(given, images, keys[2]))
        found, _ = self.compared(variables, keys[3], codes, labels, {"dropout": keys[4]})
        return found.loss, Aux({"bit_accuracy": found.accuracy})

    def evaluate(self, variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        """See `Method`; the objective per masked token, on deterministic codes."""
        codes = self.codes(given, to_float(batch["image"]))
        found, mask = self.compared(variables, key, codes, batch["label"])
        weight = mask * batch["mask"][:, None]
        return {"loss": Sum((found.per_bit.mean(-1) * weight).sum(), weight.sum())}

    def sample(self, variables: Any, key: Array, labels: Array, given: Given) -> Array:
        """See `Method`; classes to images, by the confidence-ordered sampler."""
        model = self.net.bind(variables)
        condition = model.condition(labels)
        if self.sampling.guided:
            null = jnp.full_like(labels, self.net.num_classes)
            condition = pair(condition, model.condition(null))
        steps = Steps(lambda bits, mask: model.hidden(bits, condition, mask), model.denoise)
        draws = KeyDraws(key, (len(labels), self.net.length, self.net.bits))
        target = self.objective.target
        drawn = sample_masked(steps, draws, self.schedule, self.sampling, target=target).bits
        grid = drawn.reshape(-1, *self.net.grid, self.net.bits)
        decoder = {"params": given["tokenizer"]["params"]["autoencoder"]}
        images: Any = self.tokenizer.apply(decoder, grid, method="decode")
        return jnp.clip(images, 0.0, 1.0)

    def report(self, variables: Any, key: Array, data: Any, given: Given) -> Report:
        """See `Method`; a row of samples per class, and how often the referee agrees."""
        labels = np.repeat(np.arange(self.net.num_classes), self.per_class)
        size = min(len(labels), 100)
        images = sample_in_batches(self.sample, variables, key, labels, given, size)
        shown = min(self.per_class, 10)
        rows = images.reshape(-1, self.per_class, *images.shape[1:])[:, :shown]
        names = data["train"].info.class_names
        picture = pictures.grid(rows.reshape(-1, *images.shape[1:]), shown, names=names)
        if self.referee is None:
            return Report({}, {"samples": picture})
        read_as = self.referee.bind(given["referee"])
        test = data["test"].gather(np.arange(len(data["test"])))
        real = agreement(lambda x: read_as(x)[0], test["image"], test["label"])["agreement"]
        found = agreement(lambda x: read_as(x)[0], images, labels)
        return Report({**found, "referee_test_accuracy": real}, {"samples": picture})

    def codes(self, given: Given, images: Array, key: Array | None = None) -> Array:
        """Returns the tokenizer's bits [B, N, K] of images, drawn with a key or deterministic."""
        variables = {"params": given["tokenizer"]["params"]["autoencoder"]}
        logits = self.tokenizer.apply(variables, images, method="encode")
        drawn, _ = self.tokenizer.apply(variables, logits, key, method="quantize")
        return drawn.reshape(len(images), self.net.length, self.net.bits)

    def compared(
        self, variables: Any, key: Array, codes: Array, labels: Array, rngs: Any = None
    ) -> tuple[BitLoss, Array]:
        """Returns the objective of predicting masked codes [B, N, K], and the mask [B, N]."""
        mask_key, draw_key = jax.random.split(key)
        mask = cosine_mask(mask_key, *codes.shape[:2], per_batch=self.mask_per_batch)
        t, x_t = draw(draw_key, codes, self.schedule, self.objective.target)
        inputs = (codes, labels, mask, x_t, t)
        logits: Any = self.net.apply(variables, *inputs, deterministic=not rngs, rngs=rngs)
        found = transcoder_loss(logits, codes, x_t, t, self.schedule, mask, self.objective)
        return found, mask


def generator(config: Any, tokenizer: BinaryAutoencoder, referee: ConvNet | None) -> Generator:
    """Returns the generator of a config, on a tokenizer, judged by a referee."""
    objective, grid = build(BitObjective, config.objective), (tokenizer.grid, tokenizer.grid)
    times = {"flip": config.diffusion.steps, "z0": config.diffusion.steps, "direct": 1}
    classes = config.data.num_classes
    return Generator(
        build(BiGR, config.model, bits=tokenizer.bits, grid=grid, num_classes=classes),
        tokenizer,
        referee,
        objective,
        make_schedule(config.diffusion.schedule, times[objective.target]),
        build(MaskedSampling, config.sample),
        config.masking.label_drop,
        config.masking.per_batch,
        config.data.augment,
        config.report.per_class,
    )
