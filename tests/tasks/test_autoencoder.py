"""The adversarial step against gradients computed one by one, and the loss alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax.api import TrainState
from bigr_jax.losses.perceptual import perceptual
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.patch_discriminator import PatchDiscriminator
from bigr_jax.tasks.autoencoder import Adversary, AutoencoderTask, decode, encode

NET = BinaryAutoencoder(
    filters=4, multipliers=(1, 2), blocks=1, attention_resolutions=(), embedding=8, bits=8,
    image_size=8, channels=1, groups=2,
)  # fmt: skip
DISC = PatchDiscriminator(4, 1, 1)
START, WEIGHT, LR = 3, 0.7, 0.1


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    return {"image": jnp.asarray(images), "mask": jnp.array([1.0, 1, 1, 1, 1, 0])}


@pytest.fixture(scope="module")
def method():
    return AutoencoderTask(
        NET, perceptual("none"), adversary=Adversary(DISC, WEIGHT, START)
    ).method()


@pytest.fixture(scope="module")
def variables(method, batch):
    import flax.linen as nn

    return nn.meta.unbox(jax.jit(lambda k: method.init(k, batch, {}))(jax.random.key(0)))


def taken(method, variables, batch, step):
    """Returns the gradients that the step hands to the trainer, and its metrics."""
    state = TrainState(jnp.asarray(step), variables, optax.EmptyState(), None)

    def run(state):
        kept = {}

        def apply(state, grads, mutable):
            kept.update(grads=grads, mutable=mutable)
            return state, {}

        _, metrics = method.step(state, jax.random.key(5), batch, {}, apply)
        return kept["grads"], kept["mutable"], metrics

    return jax.jit(run)(state)


def l1(params, batch, key):
    images = batch["image"].astype(jnp.float32) / 255
    drawn = NET.apply({"params": params}, images, key)[0]
    return jnp.abs(images - drawn).mean(), drawn


def fooled(params, variables, batch, key):
    judge = {
        "params": variables["params"]["discriminator"],
        "batch_stats": variables["batch_stats"],
    }
    return -DISC.apply(judge, l1(params, batch, key)[1], mutable=["batch_stats"])[0].mean()


def told_apart(params, variables, batch, key):
    images = batch["image"].astype(jnp.float32) / 255
    drawn = l1(variables["params"]["autoencoder"], batch, key)[1]
    judge = {"params": params, "batch_stats": variables["batch_stats"]}
    real, fake = (DISC.apply(judge, x, mutable=["batch_stats"])[0] for x in (images, drawn))
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def test_gradient_is_reconstruction_plus_balanced_adversary(method, variables, batch):
    grads, mutable, metrics = taken(method, variables, batch, START)
    key = jax.random.split(jax.random.key(5))[1]
    own = variables["params"]["autoencoder"]
    (value, _), a = jax.jit(jax.value_and_grad(l1, has_aux=True))(own, batch, key)
    b = jax.jit(jax.grad(fooled))(own, variables, batch, key)
    last = [np.linalg.norm(g["decoder"]["conv_out"]["kernel"]) for g in (a, b)]
    weight = WEIGHT * min(last[0] / (last[1] + 1e-4), 1.0)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["disc_weight"], weight, rtol=1e-4)
    expected = jax.tree.map(lambda x, y: x + weight * y, a, b)
    chex.assert_trees_all_close(grads["autoencoder"], expected, atol=2e-5, rtol=0)
    expected = jax.jit(jax.grad(told_apart))(
        variables["params"]["discriminator"], variables, batch, key
    )
    chex.assert_trees_all_close(grads["discriminator"], expected, atol=2e-6, rtol=0)
    assert np.abs(expected["conv_0"]["kernel"]).max() > 1e-3
    moved = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), mutable["batch_stats"], variables["batch_stats"]
    )
    assert all(x > 0 for x in jax.tree.leaves(moved))


def test_before_its_start_the_discriminator_neither_learns_nor_counts(method, variables, batch):
    grads, _, metrics = taken(method, variables, batch, START - 1)
    assert metrics["disc_weight"] == 0
    assert all((g == 0).all() for g in jax.tree.leaves(grads["discriminator"]))
    plain = AutoencoderTask(NET, perceptual("none")).method()
    only = {"params": {"autoencoder": variables["params"]["autoencoder"]}}
    found = jax.jit(jax.grad(lambda v: plain.loss(v, jax.random.key(5), batch, {})[0]))(only)
    chex.assert_trees_all_close(
        grads["autoencoder"], found["params"]["autoencoder"], atol=1e-6, rtol=0
    )


def test_evaluation_leaves_padding_out_and_draws_no_codes(method, variables, batch):
    run = jax.jit(method.evaluate)
    one = run(variables, jax.random.key(0), batch, {})
    other = dict(batch, image=batch["image"].at[5].set(7))
    two = run(variables, jax.random.key(1), other, {})
    assert one["l1"].weight == 5 and one["l1"].value == two["l1"].value
    images = batch["image"][:5].astype(jnp.float32) / 255
    drawn = jnp.clip(NET.apply({"params": variables["params"]["autoencoder"]}, images)[0], 0, 1)
    np.testing.assert_allclose(one["l1"].value / 5, jnp.abs(images - drawn).mean(), rtol=1e-5)


def test_codes_go_to_images_and_back_in_raster_order(variables, batch):
    images = batch["image"] / 255.0
    codes = jax.jit(lambda v, x: encode(NET, v, x))(variables, images)
    assert codes.shape == (6, NET.grid**2, NET.bits) and set(np.unique(codes)) <= {0.0, 1.0}
    drawn = jax.jit(lambda v, x, key: encode(NET, v, x, key))(variables, images, jax.random.key(1))
    assert not np.array_equal(codes, drawn)
    back = np.asarray(jax.jit(lambda v, z: decode(NET, v, z))(variables, codes))
    assert back.shape == images.shape and back.min() >= 0 and back.max() <= 1
    own = {"params": variables["params"]["autoencoder"]}
    grid = codes.reshape(6, NET.grid, NET.grid, NET.bits)
    plain = jax.jit(lambda v, z: NET.apply(v, z, method="decode"))(own, grid)
    np.testing.assert_allclose(back, np.clip(plain, 0, 1), atol=1e-6)
