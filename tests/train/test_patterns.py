from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import pytest

from bigr_jax.errors import UserError
from bigr_jax.train import patterns

TREE = {
    "encoder": {"layers": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}},
    "norm": [jnp.zeros(3), nn.LogicallyPartitioned(jnp.zeros((2, 2)), ("embed", "mlp"))],
}
PATHS = ["encoder/layers/bias", "encoder/layers/kernel", "norm/0", "norm/1"]


def test_paths_are_in_leaf_order_and_without_boxes():
    assert patterns.paths(TREE) == PATHS


def test_the_first_pattern_that_matches_counts():
    assert patterns.first_match(("kernel$", "encoder"), PATHS, "k") == [1, 0, None, None]
    assert patterns.first_match((), PATHS, "k") == [None] * 4


def test_a_pattern_hidden_by_an_earlier_one_is_not_dead():
    assert patterns.first_match(("encoder", "kernel$"), PATHS, "k") == [0, 0, None, None]


@pytest.mark.parametrize("pattern, part", [("kernal", "norm/0"), ("(", "not a regular")])
def test_a_useless_pattern_is_an_error_that_names_it(pattern, part):
    with pytest.raises(UserError) as caught:
        patterns.first_match(("bias", pattern), PATHS, "train.optimizer.decay_skip")
    for text in ("train.optimizer.decay_skip", repr(pattern), part):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_examples_stay_short():
    text = patterns.examples([f"layer{i}" for i in range(1000)])
    assert text.startswith("layer0, layer200") and text.endswith("and 995 more")
    assert patterns.examples(["a"]) == "a"
