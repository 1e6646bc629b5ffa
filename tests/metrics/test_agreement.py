"""Agreement of a classifier with the classes asked for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from bigr_jax.metrics.agreement import agreement, hoisted


def test_counts_right_answers_whatever_the_batches():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(17, 2, 2, 1)).astype("f4")
    answers = (images.mean((1, 2, 3)) * 3).astype(int)
    labels = np.where(np.arange(17) % 4 == 0, (answers + 1) % 3, answers)

    def predict(x):
        return jax.nn.one_hot((x.mean((1, 2, 3)) * 3).astype(int), 3)

    expected = (answers == labels).mean()
    worst = min((answers == labels)[labels == c].mean() for c in np.unique(labels))
    for size in (1, 5, 17, 40):
        found = agreement(predict, images, labels, size)
        np.testing.assert_allclose(found["agreement"], expected)
        np.testing.assert_allclose(found["worst_class"], worst)


def test_bytes_are_read_as_zero_to_one():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    found = agreement(
        lambda x: jax.nn.one_hot(x[:, 0, 0, 0].astype(int), 2), images, np.array([0, 1]), 2
    )
    assert found == {"agreement": 1.0, "worst_class": 1.0}


def reader(seed: int) -> Callable[[Any], Any]:
    """Returns a network that holds its weights and gives a tree."""
    rng = np.random.default_rng(seed)
    kernel, bias = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((12, 3), (3,)))

    def read(images: Any) -> Any:
        logits = images.reshape(len(images), -1) @ kernel + bias
        return {"logits": logits, "pair": (logits.max(-1), [images.sum((1, 2, 3))])}

    return read


def lowered(run: Callable[[Any], Any], images: np.ndarray) -> str:
    """Returns the text of the one program that a function calls."""
    (call,) = jax.make_jaxpr(run)(images).eqns
    program = call.params["jaxpr"]
    return jax.jit(jaxpr_as_fun(program)).lower(*program.in_avals).as_text()


def test_networks_with_other_weights_share_one_program() -> None:
    images = np.random.default_rng(0).uniform(size=(5, 2, 2, 3)).astype("f4")
    example = jax.ShapeDtypeStruct(images.shape, images.dtype)
    one, other = (hoisted(reader(seed), example) for seed in (0, 1))
    assert lowered(one, images) == lowered(other, images)
    plain = [lowered(jax.jit(reader(seed)), images) for seed in (0, 1)]
    assert plain[0] != plain[1], "weights are no constants any more: nothing needs hoisting"
    for run, seed in ((one, 0), (other, 1)):
        found, expected = run(images), reader(seed)(images)
        # It refuses trees of other structure.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
