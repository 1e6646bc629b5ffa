"""BitNet: every family of networks takes ternary weights by one setting."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax import registry
from bigr_jax.errors import UserError
from bigr_jax.nn.ternary import WEIGHTS

bitnet: Any = registry.run_file(registry.describe("bitnet").path)
FAMILIES = {
    "mlp": ("", 3),
    "vit": ("^(embed|head)$", 4),
    "resnet": ("^(stem|logits)$", 8),
    "lm": ("", 5),
}


def config(**changes):
    found = configs.load("bitnet:smoke", {f"model.{k}": v for k, v in changes.items()})
    return found.copy_and_resolve_references().unlock()


def batch(family, rows=4):
    rng = np.random.default_rng(0)
    if family == "lm":
        return {"tokens": jnp.asarray(rng.integers(0, 9, (rows, 7))), "mask": jnp.ones(rows)}
    image = rng.integers(0, 256, (rows, 8, 8, 1))
    label = jnp.asarray(rng.integers(0, 9, rows))
    return {"image": jnp.asarray(image, jnp.uint8), "label": label, "mask": jnp.ones(rows)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_with_ternary_weights(family):
    settings, (keep, layers) = config(family=family, depth="1"), FAMILIES[family]
    settings.data.num_classes, settings.ternary.keep = 9, keep
    if family == "mlp":
        settings.model.depth = 2
    method, rows, key = bitnet.stages(settings)["net"], batch(family), jax.random.key(0)
    variables = jax.eval_shape(method.init, key, rows, {})
    net = method.model.parts[0].module
    assert len(net.matrices(key, bitnet.seen(rows))) == layers
    grad = jax.grad(lambda v: method.loss(v, key, rows, {})[0], allow_int=True)
    slopes = jax.eval_shape(grad, variables)
    assert jax.tree.structure(slopes) == jax.tree.structure(variables)
    found = jax.eval_shape(method.evaluate, variables, key, rows, {})
    assert {"loss", "accuracy", "zeros"} <= found.keys()


def test_zeros_are_counted():
    settings = config()
    settings.data.num_classes = 9
    method, rows, key = bitnet.stages(settings)["net"], batch("mlp"), jax.random.key(0)
    variables = jax.jit(method.init)(key, rows, {})
    found = jax.jit(method.evaluate)(variables, key, rows, {})["zeros"]
    kernels = [layer["kernel"].unbox() for layer in variables["params"].values()]
    zeros = 0
    for kernel in kernels:
        size = np.abs(np.asarray(kernel, np.float64))
        zeros += (size <= np.sort(size.ravel())[(size.size - 1) // 2] / 2).sum()
    assert found.value == zeros
    assert found.weight == sum(kernel.size for kernel in kernels)


def test_settings_that_are_not_legal_are_named():
    settings = config(family="cnn")
    with pytest.raises(UserError, match=r"config.model.family.*mlp, vit, resnet, lm"):
        bitnet.stages(settings)
    for weights in WEIGHTS:
        settings = config()
        settings.data.num_classes, settings.ternary.weights = 9, weights
        assert (weights == "plain") == (
            type(bitnet.stages(settings)["net"].model.parts[0].module).__name__ != "Ternary"
        )
