import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.nn.drop_path import DropPath, rates
from bigr_jax.nn.stack import scan_layers


def test_rates_grow_from_nothing_in_parts_as_in_the_whole():
    np.testing.assert_allclose(rates(0.3, 4), [0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(rates(0.3, 2, first=1, total=4), rates(0.3, 4)[1:3])
    assert rates(0.3, 1).tolist() == [0]


def test_examples_are_dropped_whole_and_the_mean_stays():
    x = jnp.ones((4000, 3))
    y = np.asarray(DropPath().apply({}, x, 0.25, False, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert (y == y[:, :1]).all() and abs(y.mean() - 1) < 0.03
    assert DropPath().apply({}, x, 0.25) is x and DropPath().apply({}, x, 0.0, False) is x


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True, drop_path=0.0):
        return x + drop_path + 0 * DropPath()(x, drop_path, deterministic)


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x, **options):
        return scan_layers(Layer(), 3, x, drop_path=rates(0.2, 3), **options)


def test_every_layer_of_a_stack_gets_its_own():
    x, streams = Stack().apply({}, jnp.zeros((1, 1)), collect=True)
    np.testing.assert_allclose(streams[:, 0, 0], [0, 0.1, 0.3], rtol=1e-6)
    assert x.shape == (1, 1)
    _, streams = Stack().apply({}, jnp.zeros((1, 1)), collect=True, first=2)
    assert len(streams) == 2
