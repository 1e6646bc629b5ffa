from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.nn.linear import Linear
from bigr_jax.nn.stack import REMAT, scan_layers

DEPTH, WIDTH = 3, 5


class Layer(nn.Module):
    """x + dropout(tanh(linear(x) + shift))."""

    @nn.compact
    def __call__(self, x, shift, deterministic=True):
        init = nn.initializers.normal(1.0)
        y = Linear((WIDTH,), ("embed", "mlp"), kernel_init=init, name="linear")(x)
        return x + nn.Dropout(0.5)(nn.tanh(y + shift), deterministic=deterministic)


class Stack(nn.Module):
    """The layers as a network uses them."""

    def setup(self):
        self.layers = Layer()

    def __call__(self, x, shift, **options):
        return scan_layers(self.layers, DEPTH, x, shift, **options)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, WIDTH)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def variables(arrays):
    return jax.jit(Stack().init)(jax.random.key(0), *arrays)


@pytest.fixture(scope="module")
def streams(variables, arrays):
    x, shift = arrays
    outputs = []
    for kernel in np.asarray(nn.unbox(variables)["params"]["layers"]["linear"]["kernel"]):
        x = x + np.tanh(x.astype(np.float64) @ kernel + shift)
        outputs.append(x)
    return np.stack(outputs)


def test_parameters_are_stacked_and_named(variables):
    kernel = variables["params"]["layers"]["linear"]["kernel"]
    assert kernel.names == ("layers", "embed", "mlp")
    assert kernel.value.shape == (DEPTH, WIDTH, WIDTH)
    assert abs(kernel.value[0] - kernel.value[1]).max() > 0.1


def test_layers_follow_one_another(variables, arrays, streams):
    last, nothing = jax.jit(Stack().apply)(variables, *arrays)
    np.testing.assert_allclose(last, streams[-1], atol=2e-6)
    assert nothing is None


def test_every_stream_is_returned_on_request(variables, arrays, streams):
    last, every = jax.jit(lambda v: Stack().apply(v, *arrays, collect=True))(variables)
    np.testing.assert_allclose(every, streams, atol=2e-6)
    np.testing.assert_array_equal(every[-1], last)


@pytest.mark.parametrize("boxed", [True, False])
def test_the_first_layers_alone(variables, arrays, streams, boxed):
    given = variables if boxed else nn.unbox(variables)
    x, _ = jax.jit(lambda v: Stack().apply(v, *arrays, first=2))(given)
    np.testing.assert_allclose(x, streams[1], atol=2e-6)


def test_dropout_differs_between_layers(variables, arrays):
    x, _ = arrays
    rngs = {"dropout": jax.random.key(0)}
    run = lambda v: Stack().apply(v, x, 50.0, deterministic=False, collect=True, rngs=rngs)[1]  # noqa: E731
    before = np.concatenate([x[None], jax.jit(run)(variables)])
    added = np.round(np.diff(before, axis=0)).astype(int)
    assert set(added.ravel()) == {0, 2}
    assert (added[0] != added[1]).any() and (added[1] != added[2]).any()


def test_remat_changes_no_gradient(variables, arrays):
    rngs = {"dropout": jax.random.key(0)}

    def gradient(remat):
        options = {"remat": remat, "deterministic": False, "rngs": rngs}
        loss = lambda v: (Stack().apply(v, *arrays, **options)[0] ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(nn.unbox(variables))

    plain, *others = (jax.tree.leaves(gradient(remat)) for remat in REMAT)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in plain)
    for other in others:
        for a, b in zip(plain, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_remat_computes_layers_again(variables, arrays):
    def products(remat):
        loss = lambda v: Stack().apply(v, *arrays, remat=remat)[0].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(nn.unbox(variables))).count("dot_general")

    assert products("full") > products("dots") == products("none")


def test_unknown_remat_is_refused(arrays):
    with pytest.raises(UserError, match="remat='half'"):
        Stack().init(jax.random.key(0), *arrays, remat="half")
