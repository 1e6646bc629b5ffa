"""The Hydra block against arrays of the official implementation (tests/parity/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.interop.torch import from_torch
from bigr_jax.nn.hydra import Hydra


@pytest.fixture(scope="module", params=["", "b."])
def case(request: Any) -> tuple[Any, Any, Any]:
    """Returns (module, {name: array} of the pack, parameters)."""
    pack = np.load(Path(__file__).with_name("hydra_block_small.npz"))
    prefix = request.param
    arrays = {
        name.removeprefix(prefix): pack[name]
        for name in pack.files
        if name.startswith("b.") == bool(prefix)
    }
    config = json.loads(str(arrays["cfg"]))
    module = Hydra(
        head_dim=config["headdim"],
        state=config["d_state"],
        groups=config["ngroups"],
        expand=config["expand"],
        conv=config["d_conv"],
        bias=config.get("bias", False),
        learn_start=config.get("learnable_init_states", False),
        chunk=config["chunk_size"],
    )
    state = {n.removeprefix("sd/"): a for n, a in arrays.items() if n.startswith("sd/")}
    return module, arrays, from_torch(module, state, width=config["d_model"])["params"]


@pytest.mark.parametrize("form", ["streamed", "fused", "official", "matrix", "sequential"])
def test_output(case: Any, form: str) -> None:
    module, arrays, params = case
    y = jax.jit(module.clone(form=form).apply)({"params": params}, jnp.asarray(arrays["x"]))
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(y, arrays["y_f64_naive"], rtol=0, atol=5e-6)


def test_parameters_have_the_published_names_and_shapes(case: Any) -> None:
    module, arrays, params = case
    made = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(arrays["x"]))
    shapes = jax.tree.map(lambda leaf: leaf.shape, nn.unbox(made)["params"])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, params)


@pytest.mark.parametrize("form", ["streamed", "fused"])
def test_gradients(case: Any, form: str) -> None:
    module, arrays, params = case
    module = module.clone(form=form)

    def loss(params: Any, x: Any) -> Any:
        return jnp.square(module.apply({"params": params}, x)).sum()

    found, gx = jax.jit(jax.grad(loss, (0, 1)))(params, jnp.asarray(arrays["x"]))
    np.testing.assert_allclose(gx, arrays["gx"], rtol=0, atol=1e-4)
    state = {n.removeprefix("gsd/"): a for n, a in arrays.items() if n.startswith("gsd/")}
    wanted = from_torch(module, state, width=arrays["x"].shape[-1])["params"]
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, mine), theirs in zip(leaves, jax.tree.leaves(wanted), strict=True):
        scale = np.abs(theirs).max()
        # The parts of a product have gradients of very different sizes.
        assert np.abs(mine - theirs).max() <= 5e-6 * max(scale, 1.0), jax.tree_util.keystr(path)
