"""Dense prediction: every pixel has a class, and coarse maps are seen in fine places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.models.biformer import Block, Pyramid
from bigr_jax.models.semantic_fpn import MapTagger, SemanticFPN, resized

SMALL = {"depths": (1, 1), "widths": (8, 16), "heads": (2, 2), "topk": (2, 0), "regions": 2}


def test_every_pixel_has_a_class_and_sees_the_whole_image():
    net = SemanticFPN(5, Pyramid(stem=2, **SMALL), width=8, head_width=6, dropout=0.5)
    images = np.random.default_rng(0).uniform(size=(2, 13, 18, 1)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    apply = jax.jit(lambda x: net.apply(variables, x))
    logits = apply(images)
    assert logits.shape == (2, 13, 18, 5) and logits.dtype == jnp.float32
    moved = images.copy()
    moved[0, 12, 17] += 5
    changed = np.abs(apply(moved) - logits).max(-1)
    assert changed[0, 0, 0] > 0 and not changed[1].any()
    train = jax.jit(
        lambda key: net.apply(
            variables, images, False, rngs={"dropout": key}, mutable=["batch_stats"]
        )
    )
    (one, stats), (other, _) = train(jax.random.key(1)), train(jax.random.key(2))
    assert np.abs(one - other).max() > 1e-3
    assert "head_norm_1_0" in stats["batch_stats"]


def test_the_pyramid_adds_coarse_levels_to_fine_ones():
    """Four levels, as published: the head halves the distance of each in steps."""
    sizes = {"depths": (1,) * 4, "widths": (4, 4, 4, 4), "heads": (1,) * 4, "topk": (1, 1, 1, 0)}
    net = SemanticFPN(150, Pyramid(regions=2, **sizes))
    spec = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), spec)["params"]
    heads = sorted(name for name in params if name.startswith("head_") and "norm" not in name)
    assert heads == ["head_0_0", "head_1_0", "head_2_0", "head_2_1", "head_3_0", "head_3_1",
                     "head_3_2"]  # fmt: skip
    own = {k: v for k, v in params.items() if k != "backbone"}
    # 1 x 1 to 256, 3 x 3 within it; 3 x 3 to 128 and their norms; classes.
    laterals = 4 * (4 * 256 + 256 + 9 * 256 * 256 + 256)
    steps = 4 * 9 * 256 * 128 + 3 * 9 * 128 * 128 + 7 * 3 * 128
    assert sum(leaf.size for leaf in jax.tree.leaves(own)) == laterals + steps + 129 * 150


def test_resizing_is_between_the_middles_of_pixels():
    x = jnp.asarray([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    wanted = [0.0, 0.25, 0.75, 1.0]
    np.testing.assert_allclose(resized(x, (4, 4))[0, 0, :, 0], wanted, atol=1e-6)
    np.testing.assert_array_equal(resized(x, (4, 4), "nearest")[0, :, 0, 0], [0, 0, 2, 2])
    assert resized(x, (2, 2)) is x


def test_places_of_a_map_of_features():
    options = {"heads": 2, "regions": 2, "topk": 1}
    net = MapTagger(3, 2, Block("routed", options, 3, False, jnp.float32))
    features = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    logits, variables = jax.jit(net.init_with_output)(jax.random.key(0), features)
    assert logits.shape == (1, 4, 4, 3) and "batch_stats" not in variables
    _, seen = net.apply(variables, features, mutable=["intermediates"])
    (routes,) = jax.tree.leaves(seen["intermediates"])
    assert routes.shape == (2, 1, 4, 1)
