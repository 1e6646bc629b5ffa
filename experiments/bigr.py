"""BiGR: masked modelling of binary image codes, for drawing and for representation (2024, arXiv
2410.14672).

Claim     BiGR-L: FID-50k 2.71 on ImageNet 256 with 336M parameters, against 3.81 of LlamaGen-L with
          343M.
Evidence  Digits drawn class by class are read as the class asked for by a classifier that never saw
          the generator, in entropy order at least as often as in random order; 5,000 real digits,
          10 CPU minutes.
Command   bigr train --config=bigr:small
"""

from __future__ import annotations

import functools
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
from bigr_jax.losses.bits import BitObjective, draw, transcoder_loss
from bigr_jax.losses.perceptual import perceptual
from bigr_jax.metrics.agreement import agreement
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.convnet import ConvNet
from bigr_jax.models.patch_discriminator import PatchDiscriminator
from bigr_jax.nn.embed import drop_labels
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.ops.masking import cosine_mask
from bigr_jax.tasks.autoencoder import Adversary, autoencoder
from bigr_jax.tasks.classifier import classifier


def stages(config: Any) -> dict[str, Method]:
    """Returns the tokenizer, the referee where there is one, and the generator on the tokenizer's
    codes.
    """
    data = config.data
    tokenizer = build(
        BinaryAutoencoder, config.tokenizer, image_size=data.size, channels=data.channels
    )
    found, settings = {"tokenizer": tokenizer_stage(config, tokenizer)}, config.referee
    net = ConvNet(data.num_classes, settings.widths)
    referee = classifier(net, augmentation=settings.augment, smoothing=settings.smoothing)
    if settings.enabled:
        found["referee"] = referee
    found["generator"] = generator_stage(config, tokenizer, net if settings.enabled else None)
    return found


def tokenizer_stage(config: Any, net: BinaryAutoencoder) -> Method:
    """Returns the binary autoencoder's training: L1, perceptual distance, and a discriminator if
    asked for.
    """
    loss, train = config.tokenizer_loss, config.train.tokenizer
    weights = read(loss.perceptual_weights) if loss.perceptual_weights else None
    adversary = None
    disc = PatchDiscriminator(loss.disc_filters, loss.disc_layers, config.data.channels)
    size = {"batch_size": train.batch_size, "examples": config.data.examples}
    total = durations.steps(train.duration, key="train.tokenizer.duration", **size)
    start = durations.steps(loss.disc_start, key="tokenizer_loss.disc_start", total=total, **size)
    if loss.adversarial:
        adversary = Adversary(disc, loss.disc_weight, start)
    distance = perceptual(loss.perceptual, weights)
    return autoencoder(net, distance, loss.perceptual_weight, adversary, config.data.augment)


def generator_stage(
    config: Any, tokenizer: BinaryAutoencoder, referee: ConvNet | None = None
) -> Method:
    """Returns BiGR itself: the transformer and its transcoder, trained on drawn codes."""
    classes, augmentation = config.data.num_classes, config.data.augment
    side, bits = tokenizer.grid, tokenizer.bits
    net = build(BiGR, config.model, bits=bits, grid=(side, side), num_classes=classes)
    objective = build(BitObjective, config.objective)
    target, label_drop = objective.target, config.masking.label_drop
    per_batch, per_class = config.masking.per_batch, config.report.per_class
    times = 1 if target == "direct" else config.diffusion.steps
    schedule = make_schedule(config.diffusion.schedule, times)
    sampling = build(MaskedSampling, config.sample)

    def codes(given: Given, images: Array, key: Array | None = None) -> Array:
        variables = {"params": given["tokenizer"]["params"]["autoencoder"]}
        logits = tokenizer.apply(variables, images, method="encode")
        drawn, _ = tokenizer.apply(variables, logits, key, method="quantize")
        return drawn.reshape(len(images), side * side, bits)

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        size = len(batch["label"])
        empty, t = jnp.zeros((size, side * side, bits)), jnp.ones((size, side * side), jnp.int32)
        return net.init(key, empty, batch["label"], t > 0, empty, t)

    def objective_of(variables: Any, key: Array, z: Array, labels: Array, rng: Any) -> Any:
        mask_key, draw_key = jax.random.split(key)
        mask = cosine_mask(mask_key, len(z), side * side, per_batch=per_batch)
        t, x_t = draw(draw_key, z, schedule, target)
        logits: Any = net.apply(
            variables, z, labels, mask, x_t, t, deterministic=rng is None, rngs=rng or {}
        )
        return transcoder_loss(logits, z, x_t, t, schedule, mask, objective), mask

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        keys = jax.random.split(key, 5)
        images = augment(keys[0], to_float(batch["image"]), augmentation)
        labels = drop_labels(keys[1], batch["label"], classes, label_drop)
        z = jax.lax.stop_gradient(codes(given, images, keys[2]))
        found, _ = objective_of(variables, keys[3], z, labels, {"dropout": keys[4]})
        return found.loss, Aux({"bit_accuracy": found.accuracy})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        z = codes(given, to_float(batch["image"]))
        found, mask = objective_of(variables, key, z, batch["label"], None)
        weight = mask * batch["mask"][:, None]
        total = weight.sum()
        per_token = found.per_bit.mean(-1)
        return {"loss": Sum((per_token * weight).sum(), total)}

    def sample(variables: Any, key: Array, labels: Array, given: Given) -> Array:
        model = net.bind(variables)
        condition = model.condition(labels)
        if sampling.guided:
            condition = pair(condition, model.condition(jnp.full_like(labels, classes)))
        steps = Steps(lambda z, mask: model.hidden(z, condition, mask), model.denoise)
        draws = KeyDraws(key, (len(labels), side * side, bits))
        drawn = sample_masked(steps, draws, schedule, sampling, target=target).bits
        decoder = {"params": given["tokenizer"]["params"]["autoencoder"]}
        images: Any = tokenizer.apply(decoder, drawn.reshape(-1, side, side, bits), method="decode")
        return jnp.clip(images, 0.0, 1.0)

    def report(variables: Any, key: Array, data: Any, given: Given) -> Report:
        labels = np.repeat(np.arange(classes), per_class)
        images = sample_in_batches(sample, variables, key, labels, given, min(len(labels), 100))
        shown = images.reshape(classes, per_class, *images.shape[1:])[:, :10]
        names = data["train"].info.class_names
        sheet = shown.reshape(-1, *images.shape[1:])
        picture = pictures.grid(sheet, shown.shape[1], names=names)
        if referee is None:
            return Report({}, {"samples": picture})
        read_as = functools.partial(_read_as, referee, given["referee"])
        test = data["test"].gather(np.arange(len(data["test"])))
        real = agreement(read_as, test["image"], test["label"])["agreement"]
        found = agreement(read_as, images, labels)
        return Report({**found, "referee_test_accuracy": real}, {"samples": picture})

    needs = ("tokenizer",) if referee is None else ("tokenizer", "referee")
    return Method(init, loss, evaluate, needs=needs, sample=sample, report=report)


def _read_as(referee: ConvNet, variables: Any, images: Array) -> Array:
    return referee.apply(variables, images)[0]


def study(config: Any, lab: Any) -> None:
    """Compares entropy order with random order on one trained generator, over seeds of the
    sampler.
    """
    for order in ("entropy", "random"):
        run = lab.train(order, {"sample.order": order})
        for seed in range(config.study.seeds):
            found = run.report("generator", seed)
            lab.record(order, "agreement", found.metrics["agreement"], seed)
        lab.figure(order, found.images["samples"])
    text = "digits drawn in entropy order are read as the class asked for more often than in random"
    lab.claim(text, "agreement", "entropy", "random")
