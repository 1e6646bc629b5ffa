"""Masked modelling of the codes of a trained tokenizer, as a method: training, drawing, measuring.

Source: BiGR (arXiv 2410.14672), section 3.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.api import Array, Aux, Batch, Given, Method, Part, Report, Sum, Variables
from bigr_jax.data.augment import augment, to_float
from bigr_jax.generate.batched import sample_in_batches
from bigr_jax.generate.codes import sample_codes
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitLoss, BitObjective, draw, transcoder_loss
from bigr_jax.metrics.code_length import code_length
from bigr_jax.models.bigr import BiGR, at_grid
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder, at_image_size
from bigr_jax.models.convnet import ConvNet
from bigr_jax.nn.embed import Text, drop_condition
from bigr_jax.ops.bernoulli import Schedule
from bigr_jax.ops.masking import cosine_mask
from bigr_jax.ops.packing import unpack_bits
from bigr_jax.tasks.autoencoder import decode, encode
from bigr_jax.tasks.captions import caption_report, distinct
from bigr_jax.tasks.drawing import drawing_report, probe_report

DRAWN_AT_ONCE = 100


@dataclasses.dataclass(frozen=True)
class CodeGenerator:
    """BiGR on the codes of a trained tokenizer: transformer, transcoder and sampler.

    Attributes:
      net: the transformer and its denoiser.
      tokenizer: whose codes are modelled; its variables are given by the stage "tokenizer".
      referee: what reads the drawn images, given by the stage "referee": a classifier, or of texts
        a `tasks.captions.caption_reader`; None: nobody.
      objective: the loss of the transcoder.
      schedule: of its diffusion.
      sampling: how tokens are drawn.
      label_drop: how often training hides the condition; 1: always, and none is asked for.
      mask_per_batch: one masking ratio for the whole batch, as published, or one per image.
      augmentation: a spec of `bigr_jax.data.augment`; of images, not of stored codes.
      per_class: pictures of each class, or caption, in the report.
      probed: whether the report tells the accuracies of linear probes.

    A batch holds images, or in their place "codes", uint8 [B, N K / 8] of `ops.packing`; and where
    the model is conditioned on texts, "text" [B, L, F] and "text_mask" [B, L].
    """

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
        return Method(
            self.init,
            self.loss,
            self.evaluate,
            ("tokenizer",) if self.referee is None else ("tokenizer", "referee"),
            sample=self.sample,
            report=self.report,
            model=self,
        )

    @property
    def parts(self) -> list[Part]:
        """The network that has a published file."""
        return [Part(self.net, {"params": ()})]

    def init(self, key: Array, batch: Batch, given: Given) -> Variables:
        """See `Method`."""
        rows = (len(batch["label"]), self.net.length)
        empty, t = jnp.zeros((*rows, self.net.bits)), jnp.ones(rows, jnp.int32)
        return self.net.init(key, empty, self.condition(batch), t > 0, empty, t)

    def loss(self, variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        """See `Method`; on drawn codes, with conditions dropped for guidance."""
        keys = jax.random.split(key, 5)
        null = self.net.null(len(batch["label"]))
        condition = drop_condition(keys[1], self.condition(batch), null, self.label_drop)
        codes = self.codes(batch, given, keys[0], keys[2])
        found, _ = self.compared(variables, keys[3], codes, condition, {"dropout": keys[4]})
        return found.loss, Aux({"bit_accuracy": found.accuracy})

    def evaluate(self, variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        """See `Method`; the objective per masked token, and a bound on the bits of an image."""
        codes = self.codes(batch, given)
        condition, rows = self.asked(self.condition(batch)), batch["mask"]
        found, mask = self.compared(variables, key, codes, condition)
        loss = Sum((found.per_bit.mean(-1) * mask * rows[:, None]).sum(), (mask.T * rows).sum())
        bits = code_length(self.net, variables, key, codes, condition, self.schedule)
        return {"loss": loss, "bits_per_image": Sum((bits * rows).sum(), rows.sum())}

    def sample(self, variables: Any, key: Array, labels: Array | Text, given: Given) -> Array:
        """See `Method`; classes, or texts, to images, by the confidence-ordered sampler."""
        how = (self.schedule, self.sampling)
        codes = sample_codes(self.net, variables, key, self.asked(labels), *how)
        return decode(self.tokenizer, given["tokenizer"], codes)

    def describing(self, texts: Text) -> Callable[..., Array]:
        """Returns a function like `sample` that takes numbers of `texts` in place of labels."""
        known = jax.tree.map(jnp.asarray, texts)

        def sample(variables: Any, key: Array, numbers: Array, given: Given) -> Array:
            return self.sample(variables, key, jax.tree.map(lambda x: x[numbers], known), given)

        return sample

    def report(self, variables: Any, key: Array, data: Any, given: Given) -> Report:
        """See `Method`; a row of samples per class or caption, what the referee says, and linear
        probes.

        Of a source that gives codes alone, there is nothing to compare with: the samples only.
        """
        test = data["test"]
        seen = "image" in test.gather(np.arange(1))
        read: Any = self.referee and functools.partial(self.referee.apply, given["referee"])
        read = read if seen else None

        def draw(numbers: np.ndarray, sample: Any = self.sample) -> np.ndarray:
            return sample_in_batches(sample, variables, key, numbers, given, DRAWN_AT_ONCE)

        if self.net.text:
            rows = distinct(test)
            described = self.describing(self.condition(test.gather(rows)))
            found = caption_report(
                lambda numbers: draw(numbers, described), rows, test, self.per_class, read
            )
        else:
            labels = np.repeat(np.arange(self.net.num_classes), self.per_class)
            found = drawing_report(draw, data, labels, read, conditional=self.label_drop < 1)
        if not (self.probed and seen):
            return found
        codes = functools.partial(encode, self.tokenizer, given["tokenizer"])
        pooled: Any = functools.partial(self.net.apply, variables, method="pooled")
        return Report({**found.metrics, **probe_report(codes, pooled, data)}, found.images)

    def at_size(self, size: int, positions: str = "interpolated") -> CodeGenerator:
        """Returns the generator for images of another size, of the same variables.

        positions  of the rotations, see `models.bigr.at_grid`

        Raises UserError for a size that the tokenizer's layers do not divide, or other positions.
        """
        tokenizer = at_image_size(self.tokenizer, size)
        net = at_grid(self.net, (tokenizer.grid, tokenizer.grid), positions)
        return dataclasses.replace(self, net=net, tokenizer=tokenizer)

    def condition(self, batch: Batch) -> Any:
        """Returns what a batch says of its images: labels, or a `Text`."""
        return Text(batch["text"], batch["text_mask"]) if self.net.text else batch["label"]

    def codes(
        self, batch: Batch, given: Given, augment_key: Array | None = None, key: Array | None = None
    ) -> Array:
        """Returns the codes, float32 {0, 1} [B, N, K], of a batch, through which no gradient flows.

        augment_key  changes the images first; None: they stay as they are
        key          draws the bits; None: they are rounded; stored codes are as they were stored
        """
        if "codes" in batch:
            return unpack_bits(batch["codes"], (self.net.length, self.net.bits))
        images = to_float(batch["image"])
        if augment_key is not None:
            images = augment(augment_key, images, self.augmentation)
        return jax.lax.stop_gradient(encode(self.tokenizer, given["tokenizer"], images, key))

    def asked(self, condition: Any) -> Any:
        """Returns the condition, or where none is ever shown in training, the null one."""
        if self.label_drop < 1:
            return condition
        return self.net.null(len(jax.tree.leaves(condition)[0]))

    def compared(
        self, variables: Any, key: Array, codes: Array, condition: Any, rngs: Any = None
    ) -> tuple[BitLoss, Array]:
        """Returns the objective of predicting masked codes [B, N, K], and the mask [B, N]."""
        mask_key, draw_key = jax.random.split(key)
        mask = cosine_mask(mask_key, *codes.shape[:2], per_batch=self.mask_per_batch)
        if self.net.causal:
            mask = jnp.ones_like(mask)
        t, x_t = draw(draw_key, codes, self.schedule, self.net.target)
        inputs = (codes, condition, mask, x_t, t)
        logits: Any = self.net.apply(variables, *inputs, deterministic=not rngs, rngs=rngs)
        found = transcoder_loss(logits, codes, x_t, t, self.schedule, mask, self.objective)
        return found, mask
