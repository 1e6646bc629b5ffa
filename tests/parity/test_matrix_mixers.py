"""13 kinds of matrices against arrays of the official implementation (tests/parity/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.nn import mixers
from bigr_jax.ops.matrix_mixers import cosine_matrix

PACK = np.load(Path(__file__).with_name("matrix_mixers_small.npz"))
CONFIG = json.loads(str(PACK["cfg"]))
KINDS = sorted({name.split("/")[0] for name in PACK.files} - {"cfg"})
# Officially a learned Vandermonde matrix is that of Fourier.
NAMES = {"vandermonde_di": "dft_di"}
WIDTH, DIM, STATE = CONFIG["d_model"], CONFIG["headdim"], CONFIG["qk_dim"]
HEADS = CONFIG["expand"] * WIDTH // DIM
LEARNED = {"M": "matrix", "conv_params": "lags", "q_matrix": "query", "k_matrix": "key"}
OWN = {"bias": "offset", "BC": "BC", "dt_bias": "dt_bias", "A_log": "A_log", "D": "D"}


def module(kind: str) -> nn.Module:
    made = mixers.make(
        NAMES.get(kind, kind),
        heads=HEADS,
        dropout=0.0,
        dtype=jnp.float32,
        name="mixer",
        head_dim=DIM,
        expand=CONFIG["expand"],
        conv=CONFIG["d_conv"],
        chunk=CONFIG["chunk_size"],
        qk_dim=STATE,
        length=CONFIG["max_seq_len"],
    )
    return made.clone(name=None, **({"rotated": True} if "toeplitz" in kind else {}))


def parts(kind: str) -> dict[str, tuple[int, ...]]:
    """Returns what the first product is made of, in order, and of what shapes."""
    found: dict[str, tuple[int, ...]] = {"gate": (HEADS, DIM), "x": (HEADS, DIM)}
    if kind.endswith("di"):
        return found
    if kind == "toeplitz_dd":
        return found | {"lags": (2, HEADS)}
    if kind == "quasiseparable_dd":
        return found | {"BC": (2, HEADS * STATE), "dt": (2, HEADS)}
    return found | {"query": (HEADS, STATE), "key": (HEADS, STATE)}


def converted(kind: str) -> dict[str, Any]:
    """Returns our parameters of a kind's official state_dict."""
    head = f"{kind}/sd/"
    state = {n.removeprefix(head): PACK[n] for n in PACK.files if n.startswith(head)}
    inputs = parts(kind)
    params: dict[str, Any] = {}
    cuts = np.cumsum([np.prod(shape) for shape in inputs.values()])[:-1]
    for name, rows in zip(inputs, np.split(state["in_proj.weight"], cuts), strict=True):
        params[name] = {"kernel": rows.T.reshape(WIDTH, *inputs[name])}
    wide = {name: shape for name, shape in inputs.items() if name not in ("gate", "dt")}
    cuts = np.cumsum([np.prod(shape) for shape in wide.values()])[:-1]
    kernels = np.split(state["conv1d.weight"][:, 0], cuts)
    for name, rows, bias in zip(wide, kernels, np.split(state["conv1d.bias"], cuts), strict=True):
        kernel = rows.T.reshape(-1, *wide[name])
        params[f"conv_{name}"] = {"kernel": kernel, "bias": bias.reshape(wide[name])}
    params["norm"] = {"scale": state["norm.weight"]}
    params["out"] = {"kernel": state["out_proj.weight"].T}
    for name, value in state.items():
        own = name.removeprefix("matrix_mixer.")
        if own == "fc_D.weight":
            params["skip"] = {"kernel": value.T.reshape(HEADS, DIM, HEADS)}
        elif own in LEARNED | OWN:
            shape = (len(value), 2, -1) if own == "BC" else value.shape
            params[(LEARNED | OWN)[own]] = value.reshape(shape)
    return params


def test_all_kinds_are_there() -> None:
    assert len(KINDS) == 13


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient(kind: str) -> None:
    made, params = module(kind), converted(kind)

    def loss(x: Any) -> Any:
        y = made.apply({"params": params}, x)
        return jnp.square(y).sum(), y

    with jax.default_matmul_precision("highest"):
        gradient, y = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(PACK[f"{kind}/x"]))
    np.testing.assert_allclose(y, PACK[f"{kind}/y"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(gradient, PACK[f"{kind}/gx"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_published_shapes(kind: str) -> None:
    made = jax.eval_shape(module(kind).init, jax.random.key(0), jnp.asarray(PACK[f"{kind}/x"]))
    shapes = jax.tree.map(jnp.shape, nn.unbox(made)["params"])
    assert shapes == jax.tree.map(jnp.shape, converted(kind))


def test_the_matrix_of_fourier() -> None:
    """Ours has the digits that theirs loses, whose angles are rounded before they are reduced."""
    angles = 2 * np.pi * np.outer(np.arange(12), np.arange(12)) / 12
    # One angle below 2 pi, rounded three times.
    limit = 3 * np.spacing(np.float32(2 * np.pi)) / 2
    np.testing.assert_allclose(cosine_matrix(12, 12)[0, 0], np.cos(angles), rtol=0, atol=limit)
    theirs = PACK["vandermonde_di/sd/matrix_mixer.dft_matrix"]
    assert (np.abs(theirs - np.cos(angles)) <= 2 * np.spacing(np.float32(angles)) + 1e-7).all()
