"""Training of a binary autoencoder, alone or against a discriminator, as a method.

Source: VQGAN (arXiv 2012.09841) with the binary latents of arXiv 2304.04820: reconstruction plus
perceptual distance, and from `disc_start` on an adversarial loss whose weight balances the two
gradients at the decoder's last kernel.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax import pictures
from bigr_jax.api import Apply, Array, Aux, Batch, Given, Method, Report, Sum, TrainState, Variables
from bigr_jax.data.augment import augment, to_float
from bigr_jax.losses.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from bigr_jax.losses.perceptual import Distance
from bigr_jax.losses.reconstruction import absolute_error
from bigr_jax.metrics.image import psnr
from bigr_jax.models.binary_autoencoder import LAST_KERNEL, BinaryAutoencoder
from bigr_jax.models.patch_discriminator import PatchDiscriminator

SHOWN = 20


class Adversary(NamedTuple):
    """A discriminator, the weight of its loss, and the step from which it counts."""

    net: PatchDiscriminator
    weight: float
    start: int


def autoencoder(
    net: BinaryAutoencoder,
    distance: Distance,
    distance_weight: float,
    adversary: Adversary | None = None,
    augmentation: str = "",
) -> Method:
    """Returns the method that trains `net`; its variables hold params["autoencoder"] and
    params["discriminator"].

    distance   perceptual distance per image, weighted by `distance_weight`
    adversary  replaces the step by one that trains both networks; None: the loss alone
    The codes are drawn in training (a regulariser) and deterministic in evaluation.
    """

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        images = to_float(batch["image"])
        made = {"autoencoder": net.init(key, images)["params"]}
        if adversary is None:
            return {"params": made}
        found = adversary.net.init(jax.random.fold_in(key, 1), images)
        made["discriminator"] = found["params"]
        return {"params": made, "batch_stats": found["batch_stats"]}

    def reconstruct(params: Any, images: Array, key: Array | None = None) -> Array:
        return net.apply({"params": params}, images, key)[0]

    def cost(images: Array, drawn: Array) -> Array:
        return (absolute_error(images, drawn) + distance_weight * distance(images, drawn)).mean()

    def prepared(key: Array, batch: Batch) -> tuple[Array, Array]:
        augment_key, code_key = jax.random.split(key)
        return augment(augment_key, to_float(batch["image"]), augmentation), code_key

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        images, code_key = prepared(key, batch)
        return cost(images, reconstruct(variables["params"]["autoencoder"], images, code_key)), Aux(
            {}
        )

    def step(
        state: TrainState, key: Array, batch: Batch, given: Given, apply: Apply
    ) -> tuple[TrainState, Any]:
        assert adversary is not None
        images, code_key = prepared(key, batch)
        params, on = state.variables["params"], (state.step >= adversary.start).astype(jnp.float32)
        drawn, pull = jax.vjp(lambda p: reconstruct(p, images, code_key), params["autoencoder"])

        def judge(params: Any, stats: Any, images: Array) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": stats}
            logits, updated = adversary.net.apply(variables, images, mutable=["batch_stats"])
            return logits, updated["batch_stats"]

        stats = state.variables["batch_stats"]
        value, towards_image = jax.value_and_grad(functools.partial(cost, images))(drawn)
        fooled, towards_real = jax.value_and_grad(
            lambda x: generator_loss(judge(params["discriminator"], stats, x)[0])
        )(drawn)
        # Two pulls through one forward pass: the gradients of the two losses, whose balance is
        # their weight.
        (a,), (b,) = pull(towards_image), pull(towards_real)
        weight = on * adversary.weight * adaptive_weight(_last_kernel(a), _last_kernel(b))
        grads = {"autoencoder": jax.tree.map(lambda x, y: x + weight * y, a, b)}

        def discriminate(p: Any) -> tuple[Array, Any]:
            real, updated = judge(p, stats, images)
            fake, updated = judge(p, updated, jax.lax.stop_gradient(drawn))
            return hinge_discriminator_loss(real, fake), updated

        (apart, stats), found = jax.value_and_grad(discriminate, has_aux=True)(
            params["discriminator"]
        )
        grads["discriminator"] = jax.tree.map(lambda x: on * x, found)
        state, metrics = apply(state, grads, {"batch_stats": stats})
        named = {"loss": value, "generator": fooled, "discriminator": apart, "disc_weight": weight}
        return state, {**named, **metrics}

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        images, mask = to_float(batch["image"]), batch["mask"]
        drawn = jnp.clip(reconstruct(variables["params"]["autoencoder"], images), 0.0, 1.0)
        named = {"l1": absolute_error(images, drawn), "psnr": psnr(images, drawn)}
        return {name: Sum((value * mask).sum(), mask.sum()) for name, value in named.items()}

    def report(variables: Any, key: Array, data: Any, given: Given) -> Report:
        test = data["test"]
        images = test.gather(np.arange(min(len(test), 500)))["image"] / np.float32(255)
        drawn, codes, _ = jax.jit(net.apply)({"params": variables["params"]["autoencoder"]}, images)
        share = np.asarray(codes).mean(0)
        metrics = {
            "bits_per_image": float(share.size),
            "bits_used": float(((share > 0.005) & (share < 0.995)).mean()),
            "l1_of_mean_image": float(np.abs(images - images.mean(0)).mean()),
        }
        pairs = np.stack([images[:SHOWN], np.asarray(drawn)[:SHOWN]])
        picture = pictures.grid(
            pairs.reshape(-1, *images.shape[1:]), pairs.shape[1], names=("image", "reconstruction")
        )
        return Report(metrics, {"reconstructions": picture})

    return Method(
        init=init,
        loss=loss,
        evaluate=evaluate,
        step=step if adversary is not None else None,
        report=report,
    )


def _last_kernel(params: Any) -> Array:
    return functools.reduce(operator.getitem, LAST_KERNEL[1:], params)
