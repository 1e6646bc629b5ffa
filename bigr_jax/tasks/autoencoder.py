"""Training of a binary autoencoder, alone or against a discriminator, as a method.

Source: VQGAN (arXiv 2012.09841) with the binary latents of arXiv 2304.04820: reconstruction plus
perceptual distance, and from `Adversary.start` on an adversarial loss whose weight balances the two
gradients at the decoder's last kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax import durations, pictures
from bigr_jax.api import (
    Apply,
    Array,
    Aux,
    Batch,
    Given,
    Method,
    Part,
    Report,
    Sum,
    TrainState,
    Variables,
)
from bigr_jax.data.augment import augment, to_float
from bigr_jax.gather import on_host
from bigr_jax.interop.files import read
from bigr_jax.losses.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from bigr_jax.losses.perceptual import Distance, perceptual
from bigr_jax.losses.reconstruction import absolute_error
from bigr_jax.metrics.image import psnr
from bigr_jax.models.binary_autoencoder import LAST_KERNEL, BinaryAutoencoder, at_image_size
from bigr_jax.models.patch_discriminator import PatchDiscriminator

MEASURED, SHOWN = 500, 20


def autoencoder(net: BinaryAutoencoder, loss: Any, train: Any, data: Any) -> AutoencoderTask:
    """Returns the training of `net` that sections of a config describe.

    loss   perceptual, perceptual_weights, perceptual_weight, adversarial, disc_filters,
           disc_layers, disc_weight, disc_start
    train  the stage's section: duration and batch_size
    data   augment, channels and examples
    """
    # A published tokenizer holds them beside its own.
    path = loss.perceptual_weights
    weights = read(path, "perceptual") if path else None
    size = {"batch_size": train.batch_size, "examples": data.examples}
    total = durations.steps(train.duration, key="train.tokenizer.duration", **size)
    start = durations.steps(loss.disc_start, key="tokenizer_loss.disc_start", total=total, **size)
    disc = PatchDiscriminator(loss.disc_filters, loss.disc_layers, data.channels)
    adversary = Adversary(disc, loss.disc_weight, start)
    return AutoencoderTask(
        net,
        perceptual(loss.perceptual, weights),
        loss.perceptual_weight,
        adversary if loss.adversarial else None,
        data.augment,
    )


class Adversary(NamedTuple):
    """A discriminator, the weight of its loss, and the step from which it counts."""

    net: PatchDiscriminator
    weight: float
    start: int


def encode(
    net: BinaryAutoencoder, variables: Any, images: Array, key: Array | None = None
) -> Array:
    """Returns the codes, float32 {0, 1} [B, N, K], tokens in raster order, of images.

    variables  of an `AutoencoderTask`; images: float [B, H, W, C] in [0, 1]
    key        draws the bits; None: their probabilities are rounded
    """
    own = {"params": variables["params"]["autoencoder"]}
    logits = net.apply(own, images, method="encode")
    codes, _ = net.apply(own, logits, key, method="quantize")
    return codes.reshape(len(images), -1, net.bits)


def decode(net: BinaryAutoencoder, variables: Any, codes: Array) -> Array:
    """Returns images, float32 [B, H, W, C] in [0, 1], of codes [B, N, K]; see `encode`."""
    own = {"params": variables["params"]["autoencoder"]}
    images: Any = net.apply(own, codes.reshape(-1, net.grid, net.grid, net.bits), method="decode")
    return jnp.clip(images, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class AutoencoderTask:
    """The training of `net`; its variables hold params["autoencoder"] and ["discriminator"].

    distance      perceptual distance per image, weighted by `distance_weight`
    adversary     replaces the step by one that trains both networks; None: the loss alone
    augmentation  a spec of `bigr_jax.data.augment`
    The codes are drawn in training (a regulariser) and deterministic in evaluation.
    """

    net: BinaryAutoencoder
    distance: Distance
    distance_weight: float = 1.0
    adversary: Adversary | None = None
    augmentation: str = ""

    def method(self) -> Method:
        """Returns the pure functions that the trainer takes."""
        step = None if self.adversary is None else self.step
        return Method(
            self.init, self.loss, self.evaluate, step=step, report=self.report, model=self
        )

    @property
    def parts(self) -> list[Part]:
        """The networks that have a published file."""
        found = [Part(self.net, {"params": ("autoencoder",)})]
        if self.adversary is not None:
            places: Any = {"params": ("discriminator",), "batch_stats": ()}
            found.append(Part(self.adversary.net, places))
        return found

    def at_size(self, size: int) -> AutoencoderTask:
        """Returns the training on images of another size, of the same variables; see
        `models.binary_autoencoder.at_image_size`.
        """
        return dataclasses.replace(self, net=at_image_size(self.net, size))

    def init(self, key: Array, batch: Batch, given: Given) -> Variables:
        """See `Method`."""
        images = to_float(batch["image"])
        params = {"autoencoder": self.net.init(key, images)["params"]}
        if self.adversary is None:
            return {"params": params}
        made = self.adversary.net.init(jax.random.fold_in(key, 1), images)
        params["discriminator"] = made["params"]
        return {"params": params, "batch_stats": made["batch_stats"]}

    def loss(self, variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        """See `Method`; without the adversary."""
        images, code_key = self._prepared(key, batch)
        drawn = self._drawn(variables["params"]["autoencoder"], images, code_key)
        return self._cost(images, drawn), Aux({})

    def step(
        self, state: TrainState, key: Array, batch: Batch, given: Given, apply: Apply
    ) -> tuple[TrainState, Any]:
        """See `Method`; one step of both networks on the same reconstructions."""
        assert self.adversary is not None
        images, code_key = self._prepared(key, batch)
        params, stats = state.variables["params"], state.variables["batch_stats"]
        drawn, pull = jax.vjp(lambda p: self._drawn(p, images, code_key), params["autoencoder"])
        value, to_image = jax.value_and_grad(functools.partial(self._cost, images))(drawn)
        fooled, to_real = jax.value_and_grad(
            lambda x: generator_loss(self._judged(params["discriminator"], stats, x)[0])
        )(drawn)
        # Two pulls through one forward pass: both gradients, whose balance is the weight.
        (a,), (b,) = pull(to_image), pull(to_real)
        on = (state.step >= self.adversary.start).astype(jnp.float32)
        weight = on * self.adversary.weight * adaptive_weight(_last_kernel(a), _last_kernel(b))

        def told_apart(p: Any) -> tuple[Array, Any]:
            real, updated = self._judged(p, stats, images)
            fake, updated = self._judged(p, updated, jax.lax.stop_gradient(drawn))
            return hinge_discriminator_loss(real, fake), updated

        (apart, stats), c = jax.value_and_grad(told_apart, has_aux=True)(params["discriminator"])
        grads = {
            "autoencoder": jax.tree.map(lambda x, y: x + weight * y, a, b),
            "discriminator": jax.tree.map(lambda x: on * x, c),
        }
        state, metrics = apply(state, grads, {"batch_stats": stats})
        named = {"loss": value, "generator": fooled, "discriminator": apart, "disc_weight": weight}
        return state, {**named, **metrics}

    def evaluate(self, variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        """See `Method`; L1 and PSNR (dB) of clipped reconstructions."""
        images, mask = to_float(batch["image"]), batch["mask"]
        drawn = jnp.clip(self._drawn(variables["params"]["autoencoder"], images), 0.0, 1.0)
        named = {"l1": absolute_error(images, drawn), "psnr": psnr(images, drawn)}
        return {name: Sum((value * mask).sum(), mask.sum()) for name, value in named.items()}

    def report(self, variables: Any, key: Array, data: Any, given: Given) -> Report:
        """See `Method`; how the bits are used, and reconstructions of test images."""
        test = data["test"]
        chosen = np.linspace(0, len(test) - 1, min(len(test), MEASURED)).astype(int)
        images = test.gather(chosen)["image"] / np.float32(255)
        params = {"params": variables["params"]["autoencoder"]}
        drawn, codes, _ = on_host(jax.jit(self.net.apply)(params, images))
        share = codes.mean(0)
        metrics = {
            "bits_per_image": float(share.size),
            "bits_used": float(((share > 0.005) & (share < 0.995)).mean()),
            "l1_of_mean_image": float(np.abs(images - images.mean(0)).mean()),
        }
        few = np.linspace(0, len(images) - 1, min(len(images), SHOWN)).astype(int)
        rows = np.concatenate([images[few], drawn[few]])
        picture = pictures.grid(rows, len(few), names=("image", "reconstruction"))
        return Report(metrics, {"reconstructions": picture})

    def _prepared(self, key: Array, batch: Batch) -> tuple[Array, Array]:
        augment_key, code_key = jax.random.split(key)
        return augment(augment_key, to_float(batch["image"]), self.augmentation), code_key

    def _drawn(self, params: Any, images: Array, key: Array | None = None) -> Array:
        found: Any = self.net.apply({"params": params}, images, key)
        return found[0]

    def _cost(self, images: Array, drawn: Array) -> Array:
        perceived = self.distance_weight * self.distance(images, drawn)
        return (absolute_error(images, drawn) + perceived).mean()

    def _judged(self, params: Any, stats: Any, images: Array) -> tuple[Array, Any]:
        assert self.adversary is not None
        variables = {"params": params, "batch_stats": stats}
        logits, updated = self.adversary.net.apply(variables, images, mutable=["batch_stats"])
        return logits, updated["batch_stats"]


def _last_kernel(params: Any) -> Array:
    return functools.reduce(operator.getitem, LAST_KERNEL[1:], params)
