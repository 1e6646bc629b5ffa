"""The PatchGAN discriminator: shapes, statistics, errors. Values are in the parity tests."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.models.patch_discriminator import PatchDiscriminator

MODEL = PatchDiscriminator(filters=2, layers=2, channels=1)


@pytest.fixture(scope="module")
def variables():
    made = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), nn.unbox(made["params"]))
    stats = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), made["batch_stats"])
    stats = {name: {"mean": norm["mean"], "var": norm["var"] + 1} for name, norm in stats.items()}
    return {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(size=(2, 16, 12, 1)).astype(np.float32)


def test_published_size_has_its_parameters():
    model = PatchDiscriminator()
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3))))
    made = nn.unbox(made)
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == 2_765_633
    assert sum(leaf.size for leaf in jax.tree.leaves(made["batch_stats"])) == 2 * (128 + 256 + 512)
    logits = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((4, 256, 256, 3)), False), made)
    assert logits.shape == (4, 30, 30, 1)


def test_running_statistics_follow_the_batch(variables, image):
    logits, after = MODEL.apply(variables, image, mutable=["batch_stats"])
    assert logits.shape == (2, 2, 1, 1) and logits.dtype == jnp.float32
    first = nn.leaky_relu(
        nn.Conv(2, (4, 4), 2, 1).apply({"params": variables["params"]["conv_0"]}, image), 0.2
    )
    kernel = variables["params"]["conv_1"]["kernel"]
    x = nn.Conv(4, (4, 4), 2, 1, use_bias=False).apply({"params": {"kernel": kernel}}, first)
    # A tenth of the way from mean 0 and variance 1 to the batch's.
    stats = after["batch_stats"]["norm_1"]
    np.testing.assert_allclose(stats["mean"], 0.1 * np.mean(x, (0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * np.var(x, (0, 1, 2)), rtol=1e-6)


def test_evaluation_sees_every_image_alone(variables, image):
    run = jax.jit(lambda image: MODEL.apply(variables, image, train=False))
    together = run(image)
    np.testing.assert_allclose(together[1:], run(image[1:]), atol=1e-6)


def test_errors(variables):
    with pytest.raises(UserError, match=r"layers=2 .* at least 12 pixels; given 11 x 16"):
        MODEL.apply(variables, jnp.zeros((1, 11, 16, 1)))
    with pytest.raises(ValueError, match="must have 1 channels"):
        MODEL.apply(variables, jnp.zeros((1, 16, 16, 3)))
