from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.interop.layout import inward, published_shape, spans
from bigr_jax.interop.names_hydra import rows
from bigr_jax.interop.torch import from_torch, shapes, to_torch
from bigr_jax.nn.hydra import Hydra

WIDTH = 6
PLAIN = Hydra(head_dim=4, state=5, conv=3)
MODELS = {"plain": PLAIN, "all": PLAIN.clone(groups=3, bias=True, learn_start=True)}


def drawn(model):
    """A published file of random values, some of them not finite or signed zeros."""
    rng, state = np.random.default_rng(0), {}
    for name, shape in shapes(model, width=WIDTH).items():
        state[name] = rng.normal(size=shape).astype(np.float32)
        state[name].flat[:1] = rng.choice([-0.0, np.inf, np.nan, 1e-40])
    return state


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_round_trip_is_exact(model):
    state = drawn(model)
    variables = from_torch(model, state, width=WIDTH)
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(jnp.shape, nn.unbox(made))
    back = to_torch(model, variables, width=WIDTH)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert (back[name].shape, back[name].tobytes()) == (value.shape, value.tobytes()), name


def test_published_shapes():
    wanted = {
        "in_proj.weight": (3376, 768),
        "conv1d.weight": (1792, 1, 7),
        "conv1d.bias": (1792,),
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "fc_D.weight": (24, 1536),
        "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }
    assert shapes(Hydra(), width=768) == wanted
    assert sum(np.prod(shape) for shape in wanted.values()) == 3_825_224
    more = Hydra(bias=True, learn_start=True)
    more = {name: shape for name, shape in shapes(more, width=768).items() if name not in wanted}
    assert more == {"in_proj.bias": (3376,), "out_proj.bias": (768,), "init_states": (24, 64, 64)}


def test_the_parts_of_a_product():
    state = drawn(PLAIN)
    params = from_torch(PLAIN, state, width=WIDTH)["params"]
    # z, x: 3 heads of 4, then B and C of both directions: 4 of 5, then dt: 2 of 3.
    weight = state["in_proj.weight"]
    assert params["gate"]["kernel"][5, 2, 1] == weight[9, 5]
    assert params["x"]["kernel"][0, 1, 3] == weight[12 + 7, 0]
    assert params["BC"]["kernel"][1, 1, 0, 0, 2] == weight[24 + 12, 1]
    assert params["dt"]["kernel"][3, 1, 2] == weight[44 + 5, 3]
    assert params["conv_BC"]["kernel"][2, 0, 1, 0, 4] == state["conv1d.weight"][12 + 9, 0, 2]
    assert params["skip"]["kernel"][1, 2, 0] == state["fc_D.weight"][0, 6]


def test_one_error_names_every_key():
    state = drawn(PLAIN)
    state["fc_D.wieght"] = state.pop("fc_D.weight")
    state["in_proj.weight"] = state["in_proj.weight"][1:]
    with pytest.raises(UserError) as caught:
        from_torch(PLAIN, state, width=WIDTH)
    assert str(caught.value) == (
        "the weights do not fit Hydra: 1 missing: fc_D.weight; 1 unknown: fc_D.wieght (did you "
        "mean 'fc_D.weight'?); 1 of another shape: in_proj.weight is (49, 6), wanted (50, 6)"
    )
    variables = from_torch(PLAIN, drawn(PLAIN), width=WIDTH)
    del variables["params"]["BC"]
    with pytest.raises(UserError, match="do not fit Hydra: 1 missing: params/BC/kernel"):
        to_torch(PLAIN, variables, width=WIDTH)
    with pytest.raises(ValueError, match="Hydra needs a width; width=None"):
        from_torch(PLAIN, drawn(PLAIN))


def test_layers_of_a_network():
    """The same rows with other names, and a place along the axis of layers."""
    path = ("params", "layers", "mixer")
    entries = [*rows(PLAIN, WIDTH, "a.0.", path, 0), *rows(PLAIN, WIDTH, "a.1.", path, 1)]
    kernels = [entry for entry in entries if entry.path == (*path, "x", "kernel")]
    assert [(entry.torch, entry.layer) for entry in kernels] == [
        ("a.0.in_proj.weight", 0), ("a.1.in_proj.weight", 1)
    ]  # fmt: skip
    alone = list(rows(PLAIN, WIDTH))
    assert [entry.torch for entry in entries[len(alone) :]] == [f"a.1.{e.torch}" for e in alone]
    made = jax.eval_shape(PLAIN.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))["params"]
    ours = nn.unbox(made)["x"]["kernel"].shape
    parts = [entry for entry in entries if entry.torch == "a.1.in_proj.weight"]
    shape = [published_shape(entry, ()) for entry in parts]
    assert spans(parts, shape)[1] == slice(12, 24)
    value = np.arange(12 * WIDTH).reshape(12, WIDTH)
    assert inward(kernels[1], value, (2, *ours))[4, 2, 3] == value[11, 4]
