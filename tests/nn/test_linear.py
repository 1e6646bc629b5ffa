from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from bigr_jax.nn.linear import Linear


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CASES = {
    "one to one": ((4,), ("embed", "mlp"), (2, 3), "btd,df->btf"),
    "one to three": ((3, 2, 5), ("embed", None, "heads", "head_dim"), (3,), "btd,dihc->btihc"),
    "two to one": ((4,), ("heads", "head_dim", "embed"), (2, 5), "bthc,hcd->btd"),
}


@pytest.mark.parametrize("features, names, inputs, product", CASES.values(), ids=CASES)
def test_matches_float64_with_gradients(features, names, inputs, product):
    inputs = inputs[-(len(names) - len(features)) :]
    x, kernel, bias = draw(0, 2, 3, *inputs), draw(1, *inputs, *features), draw(2, *features)
    weight = draw(3, 2, 3, *features)
    layer = Linear(features, names, bias=True)

    def run(params, x):
        y = layer.apply({"params": params}, x)
        return (y * weight).sum(), y

    value_and_grad = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    (_, y), (g, gx) = value_and_grad({"kernel": kernel, "bias": bias}, x)
    left, right = product.split("->")[0].split(",")
    out = product.split("->")[1]
    wide = [a.astype(np.float64) for a in (x, kernel, weight)]
    np.testing.assert_allclose(y, np.einsum(product, *wide[:2]) + bias, atol=3e-6)
    np.testing.assert_allclose(gx, np.einsum(f"{out},{right}->{left}", wide[2], wide[1]), atol=3e-6)
    wanted = np.einsum(f"{left},{out}->{right}", wide[0], wide[2])
    np.testing.assert_allclose(g["kernel"], wanted, atol=3e-6)
    np.testing.assert_allclose(g["bias"], wide[2].sum((0, 1)), atol=3e-6)


def test_parameters_have_names_and_no_bias_by_default():
    layer = Linear((3, 2, 5), ("embed", None, "heads", "head_dim"))
    params = layer.init(jax.random.key(0), draw(0, 1, 400))["params"]
    assert params.keys() == {"kernel"}
    assert params["kernel"].names == ("embed", None, "heads", "head_dim")
    assert params["kernel"].value.shape == (400, 3, 2, 5)
    assert abs(params["kernel"].value.std() - 0.02) < 1e-3
    bias = Linear((2,), ("embed", "mlp"), bias=True).init(jax.random.key(0), draw(0, 1, 3))
    assert bias["params"]["bias"].names == ("mlp",)
    assert not bias["params"]["bias"].value.any()


def test_initializer_sees_one_fan_in_and_one_fan_out():
    seen = []

    def init(key, shape):
        seen.append(shape)
        return jnp.zeros(shape)

    layer = Linear((3, 4), ("heads", "head_dim", None, None), kernel_init=init)
    layer.init(jax.random.key(0), draw(0, 1, 2, 5))
    assert set(seen) == {(10, 12)}


def test_parameters_are_born_under_a_mesh():
    mesh = jax.make_mesh((1, 1), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2)
    layer, x = Linear((3, 2, 5), ("embed", None, "heads", "head_dim")), draw(0, 1, 4)
    rules = (("embed", "fsdp"), ("heads", "model"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        params = jax.jit(lambda key: layer.init(key, x))(jax.random.key(0))["params"]
    assert params["kernel"].value.shape == (4, 3, 2, 5)


def test_product_takes_the_dtype():
    layer, x = Linear((2,), ("embed", "mlp"), bias=True, dtype=jnp.bfloat16), draw(0, 3, 4)
    params = nn.unbox(layer.init(jax.random.key(0), x))
    assert params["params"]["kernel"].dtype == jnp.float32
    assert layer.apply(params, x).dtype == jnp.bfloat16
