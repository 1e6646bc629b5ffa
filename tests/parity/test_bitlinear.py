"""The ternary layer against arrays of the official BitLinear (tests/parity/README.md).

With a bias the official layer differs by design: it quantises the bias with the sums and divides it
by both scales; ours adds it behind them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bigr_jax.nn.linear import Linear
from bigr_jax.nn.ternary import Frozen, Ternary, freeze
from bigr_jax.ops.ternary import ternary_quantise

NAMES = {"median": "AbsMedian", "mean": "AbsMean", "max": "AbsMax"}
LAYER = Linear((16,), ("embed", "mlp"))


@pytest.fixture(scope="module")
def pack() -> Any:
    return np.load(Path(__file__).with_name("bitlinear_small.npz"))


@pytest.mark.parametrize("measure", NAMES)
def test_codes_and_scale(pack: Any, measure: str) -> None:
    codes, scale = ternary_quantise(pack["weight"], measure)
    np.testing.assert_array_equal(codes, pack[f"wq/{NAMES[measure]}"])
    np.testing.assert_allclose(scale.item(), pack[f"wscale/{NAMES[measure]}"], rtol=1e-6)


@pytest.mark.parametrize("measure", NAMES)
def test_outputs_and_gradients(pack: Any, measure: str) -> None:
    net, x, kernel = Ternary(LAYER, measure), pack["x"], pack["weight"].T

    def total(kernel: Any, x: Any) -> Any:
        y = net.apply({"params": {"kernel": kernel}}, x)
        return y.sum(), y

    made = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, y), (kernel_slope, x_slope) = made(kernel, x)
    name = f"{NAMES[measure]}/bias0"
    np.testing.assert_allclose(y, pack[f"out/{name}"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(x_slope, pack[f"grad_x/{name}"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(kernel_slope.T, pack[f"grad_w/{name}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("measure", NAMES)
def test_frozen_outputs_and_the_bias(pack: Any, measure: str) -> None:
    params = {"params": {"kernel": pack["weight"].T, "bias": pack["bias"]}}
    biased = LAYER.clone(bias=True)
    frozen = freeze(params, {("kernel",): (-2, -1)}, measure)
    y = Frozen(biased).apply(frozen, pack["x"])
    wanted = pack[f"out/{NAMES[measure]}/bias0"] + pack["bias"]
    np.testing.assert_allclose(y, wanted, atol=1e-5, rtol=1e-5)
    assert np.abs(y - pack[f"out/{NAMES[measure]}/bias1"]).max() > 0.1
