"""Classification as a method: masked evaluation, and learning on a task with a known answer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax.models.convnet import ConvNet
from bigr_jax.tasks.classifier import classifier

NET = ConvNet(2, widths=(8,))


def batch(seed, size=16):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, size)
    image = np.where(label[:, None, None, None] == 1, 200, 30) + rng.integers(
        0, 20, (size, 4, 4, 1)
    )
    return {
        "image": jnp.asarray(image, jnp.uint8),
        "label": jnp.asarray(label, jnp.int32),
        "mask": jnp.ones(size),
    }


def test_learns_dark_from_bright_and_evaluates_by_hand():
    method = classifier(NET, smoothing=0.1)
    tx = optax.adam(1e-2)
    variables = nn.meta.unbox(method.init(jax.random.key(0), batch(0), {}))
    state = tx.init(variables)

    @jax.jit
    def step(variables, state, rows):
        grads, _ = jax.grad(method.loss, has_aux=True)(variables, jax.random.key(0), rows, {})
        updates, state = tx.update(grads, state)
        return optax.apply_updates(variables, updates), state

    for seed in range(30):
        variables, state = step(variables, state, batch(seed))
    rows = batch(99)
    rows["mask"] = rows["mask"].at[3].set(0)
    found = method.evaluate(variables, jax.random.key(0), rows, {})
    assert found["accuracy"].weight == 15 and found["accuracy"].value == 15
    logits = np.asarray(NET.apply(variables, rows["image"] / 255.0)[0], "f8")
    cost = np.log(np.exp(logits).sum(1)) - logits[np.arange(16), rows["label"]]
    np.testing.assert_allclose(found["loss"].value, np.delete(cost, 3).sum(), rtol=1e-4, atol=1e-6)
