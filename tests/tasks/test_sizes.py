"""Training at several sizes: which step is at which, and that it is the step of that size."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigr_jax.api import TrainState
from bigr_jax.errors import UserError
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitObjective
from bigr_jax.losses.perceptual import perceptual
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.patch_discriminator import PatchDiscriminator
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.tasks.autoencoder import Adversary, AutoencoderTask
from bigr_jax.tasks.code_generator import CodeGenerator
from bigr_jax.tasks.sizes import at_sizes, scaled

TOKENIZER = BinaryAutoencoder(
    filters=4, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), embedding=8, bits=3,
    image_size=8, channels=1, groups=2,
)  # fmt: skip
NET = BiGR(
    depth=1, width=8, heads=1, bits=3, grid=(4, 4), num_classes=2, head_width=4, head_blocks=1,
    ffn_hidden=8, dropout=0.0, target="direct",
)  # fmt: skip
GENERATOR = CodeGenerator(
    NET, TOKENIZER, None, BitObjective(target="direct"), make_schedule("linear", 1),
    MaskedSampling(iterations=1, denoise_steps=1, cfg_scale=1.0), 0.1, False, "", 1, False,
)  # fmt: skip
AUTOENCODER = AutoencoderTask(
    TOKENIZER, perceptual("none"), adversary=Adversary(PatchDiscriminator(4, 1, 1), 0.7, 0)
)
SIZES = (8, 12)
# By `jax.random.split` and `jax.random.randint`, the first and the second of the sizes.
KEYS = {8: jax.random.key(3), 12: jax.random.key(0)}


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(4) % 2, "mask": jnp.ones(4)}


def drawn(init):
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def given(batch):
    return {"tokenizer": drawn(lambda key: AUTOENCODER.init(key, batch, {}))}


class Plain(NamedTuple):
    """Stands for a task, whose loss is its size."""

    side: int

    def method(self):
        def loss(variables, key, batch, given):
            assert batch["image"].shape[1:3] == (self.side, self.side)
            return variables * self.side, {"key": jax.random.key_data(key)}

        return GENERATOR.method()._replace(loss=loss, model=self)

    def at_size(self, size):
        return Plain(size)


def test_every_size_is_as_likely(batch):
    method = at_sizes(Plain(8), (8, 12, 16))
    assert method.model == Plain(8)
    keys = jax.random.split(jax.random.key(0), 600)
    found, aux = jax.jit(jax.vmap(lambda key: method.loss(1.0, key, batch, {})))(keys)
    sizes, counts = np.unique(found, return_counts=True)
    assert sizes.tolist() == [8, 12, 16] and counts.min() > 150
    # Nor does what is drawn afterwards depend on the size.
    assert len(np.unique(aux["key"], axis=0)) == 600


@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_that_of_the_task_of_its_size(batch, given, size):
    variables = drawn(lambda key: GENERATOR.init(key, batch, given))
    mixed, plain = at_sizes(GENERATOR, SIZES), GENERATOR.at_size(size).method()
    own = scaled(batch, size)

    def gradient(loss, key, batch):
        return jax.jit(jax.value_and_grad(lambda v: loss(v, key, batch, given)[0]))(variables)

    found = gradient(mixed.loss, KEYS[size], batch)
    expected = gradient(plain.loss, jax.random.split(KEYS[size])[1], own)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found[1]["params"]["position"]).max() > 0
    other = gradient(mixed.loss, KEYS[20 - size], batch)
    assert not np.isclose(other[0], found[0])


@pytest.mark.parametrize("size", SIZES)
def test_a_step_of_two_networks_is_that_of_its_size(batch, given, size):
    state = TrainState(jnp.asarray(0), given["tokenizer"], optax.EmptyState(), None)

    def apply(state, grads, mutable):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, state.variables["params"], grads)
        return state._replace(variables={"params": params, **mutable}), {}

    def step(task, key, batch):
        return jax.jit(lambda state: task.step(state, key, batch, {}, apply))(state)

    found = step(at_sizes(AUTOENCODER, SIZES), KEYS[size], batch)
    alone, key = AUTOENCODER.at_size(size).method(), jax.random.split(KEYS[size])[1]
    expected = step(alone, key, scaled(batch, size))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_and_samples_are_at_the_task_s_own_size():
    method = at_sizes(GENERATOR, (12,))
    assert method._replace(loss=None) == GENERATOR.method()._replace(loss=None)
    assert at_sizes(GENERATOR, ()) == GENERATOR.method()


def test_images_are_scaled(batch):
    assert scaled(batch, 8) is batch
    for size in (4, 12):
        even = scaled({"image": jnp.full((2, 8, 8, 3), 77, jnp.uint8)}, size)["image"]
        assert even.shape == (2, size, size, 3) and even.dtype == jnp.uint8
        assert np.array_equal(even, np.full_like(even, 77))
    # Bicubic scaling overshoots at edges, which must not wrap around.
    edge = jnp.repeat(jnp.array([0, 255], jnp.uint8), 4).reshape(1, 1, 8, 1)
    steps = scaled({"image": jnp.tile(edge, (1, 8, 1, 1))}, 16)["image"][0, 5, :, 0].astype(int)
    assert (np.diff(steps) >= 0).all() and (steps[0], steps[-1]) == (0, 255)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((8, 9), "size=9 is not a multiple of 2 pixels"),
        ((8, 0), "size=0 is not a multiple of 2 pixels"),
        ((8, "12"), r"data.sizes=\(8, '12'\); legal: \(\), or sides in pixels"),
        ((True,), "data.sizes"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, said):
    for task in (GENERATOR, dataclasses.replace(AUTOENCODER, adversary=None)):
        with pytest.raises(UserError, match=said):
            at_sizes(task, sizes)


def test_stored_codes_are_of_one_size(batch, given):
    stored = {"codes": jnp.zeros((4, 6), jnp.uint8), "label": batch["label"]}
    with pytest.raises(UserError, match=r"data.sizes: the data hold codes, .* legal: \(\)"):
        at_sizes(GENERATOR, SIZES).loss({}, jax.random.key(0), stored, given)
