from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from bigr_jax.errors import UserError
from bigr_jax.train import muon, optimizers

LR, STEPS = 0.03, 6
SHAPES = {
    "table": {"embedding": (5, 4)},
    "layers": {"kernel": (2, 4, 3), "bias": (2, 3)},
    "head": {"kernel": (4, 3), "bias": (3,)},
}
BOXES = {
    "table": {"embedding": ("vocab", "embed")},
    "layers": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
    "head": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
}
ALL = [(name, frozen) for name in optimizers.NAMES for frozen in (False, True)]


def section(name="adamw", **changes):
    fields = {
        "name": name,
        "lr": LR,
        "schedule": "constant",
        "warmup": "0",
        "end_lr": 0.0,
        "cooldown": "0",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.0 if name == "adam" else 0.2,
        "clip": 0.0,
        "decay_skip": ("bias$", "embedding$"),
        "lr_multipliers": (),
    }
    return SimpleNamespace(**{**fields, **changes})


def is_shape(node):
    return isinstance(node, tuple)


def make(params, *args, total=100, **changes):
    return optimizers.make(section(*args, **changes), total, params, lambda text, key: int(text))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape
    )


@pytest.fixture(scope="module")
def gradients():
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=is_shape
        )
        for _ in range(STEPS)
    ]


@pytest.fixture(scope="module")
def boxed(params):
    return jax.tree.map(nn.LogicallyPartitioned, params, BOXES)


def trained(tx, params, gradients):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def oracle(name, params, gradients, clip, decay, rates, lrs, b1=0.9, b2=0.95, eps=1e-8):
    """Float64 NumPy, written from the papers: Loshchilov 2019, Chen 2023, momentum SGD."""
    p = {k: v.astype(np.float64) for k, v in by_path(params).items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    for step, tree in enumerate(gradients):
        grads = {k: g.astype(np.float64) for k, g in by_path(tree).items()}
        norm = np.sqrt(sum((grads[k] ** 2).sum() for k in p if rates.get(k, 1) != 0))
        scale = min(1.0, clip / norm) if clip else 1.0
        for k in p:
            g = grads[k] * scale
            if name == "adamw":
                m[k] = b1 * m[k] + (1 - b1) * g
                v[k] = b2 * v[k] + (1 - b2) * g * g
                direction = m[k] / (1 - b1 ** (step + 1))
                direction = direction / (np.sqrt(v[k] / (1 - b2 ** (step + 1))) + eps)
            elif name == "lion":
                direction = np.sign(b1 * m[k] + (1 - b1) * g)
                m[k] = b2 * m[k] + (1 - b2) * g
            else:
                m[k] = b1 * m[k] + g
                direction = m[k]
            wd = 0.0 if k.endswith(("bias", "embedding")) else decay
            p[k] = p[k] - lrs[step] * rates.get(k, 1.0) * (direction + wd * p[k])
    return p


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_equals_the_float64_oracle_with_clip_decay_mask_multiplier_and_warmup(
    name, clip, params, gradients
):
    rates = {"head/kernel": 0.25, "head/bias": 0.25, "layers/bias": 0.0}
    tx, schedule = make(
        params,
        name,
        clip=clip,
        schedule="linear",
        warmup="2",
        total=10,
        lr_multipliers=(("head/", 0.25), ("layers/bias", 0.0)),
    )
    lrs = [LR * t / 2 if t < 2 else LR * (1 - (t - 2) / 8) for t in range(STEPS)]
    np.testing.assert_allclose([float(schedule(t)) for t in range(STEPS)], lrs, rtol=1e-6)
    got = by_path(trained(tx, params, gradients)[0])
    want = oracle(name, params, gradients, clip, 0.2, rates, lrs)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_adam_is_adamw_without_decay(params, gradients):
    one, _ = trained(make(params, "adam")[0], params, gradients)
    two, _ = trained(make(params, "adamw", weight_decay=0.0)[0], params, gradients)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name", [n for n in optimizers.NAMES if n != "adam"])
def test_skipped_parameters_move_as_without_weight_decay(name, params, gradients, boxed):
    with_decay = by_path(trained(make(boxed, name)[0], params, gradients)[0])
    without = by_path(trained(make(boxed, name, weight_decay=0.0)[0], params, gradients)[0])
    for path, value in with_decay.items():
        skipped = path.endswith(("bias", "embedding"))
        assert np.array_equal(value, without[path]) == skipped, path


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_factor_zero_freezes_bit_for_bit_and_keeps_no_state(name, params, gradients, boxed):
    tx, _ = make(boxed, name, clip=1.0, lr_multipliers=(("^layers/", 0.0), ("head", 2.0)))
    after, state = trained(tx, params, gradients)
    shown = optimizers.eval_params(name, state, after)
    for path, before in by_path(params).items():
        frozen = path.startswith("layers/")
        assert np.array_equal(by_path(after)[path], before) == frozen, path
        assert np.array_equal(by_path(shown)[path], before) == frozen, path
    assert not any("layers" in path for path in by_path(state))


def test_frozen_gradients_do_not_count_in_the_clipped_norm(params, gradients):
    tx, _ = make(params, "sgd", clip=1.0, b1=0.0, lr_multipliers=(("layers|table", 0.0),))
    huge = {**gradients[0], "layers": jax.tree.map(lambda g: 1e6 * g, gradients[0]["layers"])}
    one, _ = trained(tx, params, [huge])
    two, _ = trained(tx, params, gradients[:1])
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name, frozen", ALL)
def test_every_state_leaf_of_a_parameter_is_found_by_optax_and_by_its_path(
    name, frozen, params, boxed
):
    """Shardings of the state follow from those of the parameters."""
    changes = {"clip": 1.0, "lr_multipliers": (("head/bias", 0.0),) if frozen else ()}
    tx, _ = make(boxed, name, **changes)
    state = jax.eval_shape(tx.init, params)
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
    mapped = optax.tree_map_params(
        tx,
        lambda leaf, name: leaf if muon.is_masked(leaf) else (leaf.shape, name),
        state,
        names,
        transform_non_params=lambda leaf: None,
        is_leaf=muon.is_masked,
    )
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree_util.tree_leaves_with_path(mapped, is_leaf=is_pair)
        if is_pair(value)
    }
    shapes = {path: leaf.shape for path, leaf in by_path(params).items()}
    for path, (shape, name) in found.items():
        assert path.endswith("/" + name) and shape == shapes[name]
    if name != "sgd":
        expected = set(shapes) - ({"head/bias"} if frozen else set())
        assert {name for _, name in found.values()} == expected
    rest = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert len(rest) - len(found) <= 12 and sum(np.prod(s, dtype=int) for s in rest) < 400


def is_pair(node):
    return isinstance(node, tuple) and len(node) == 2 and isinstance(node[1], str)


def test_muon_takes_the_matrices_and_leaves_the_rest_to_adam(params, boxed):
    state = make(boxed, "muon")[0].init(params)
    inner = next(
        node.inner_states
        for node in jax.tree.leaves(state, is_leaf=lambda n: hasattr(n, "inner_states"))
        if hasattr(node, "inner_states")
    )
    endings = {
        half: {path.split("/mu/")[1] for path in by_path(inner[half]) if "/mu/" in path}
        for half in ("muon", "adam")
    }
    assert endings["muon"] == {"layers/kernel", "head/kernel"}
    assert endings["adam"] == {"layers/bias", "head/bias", "table/embedding"}


def test_muon_steps_are_orthogonal_per_layer_with_the_rms_of_adam(params, boxed, gradients):
    tx, _ = make(boxed, "muon", lr=1.0, weight_decay=0.0)
    updates, _ = tx.update(gradients[0], tx.init(params), params)
    for layer in range(2):
        step = np.asarray(updates["layers"]["kernel"][layer], np.float64)
        # Five Newton-Schulz steps bring singular values near one, not to it.
        values = np.linalg.svd(step, compute_uv=False) / (0.2 * np.sqrt(4))
        assert np.all(values > 0.6) and np.all(values < 1.3)
        left, _, right = np.linalg.svd(-gradients[0]["layers"]["kernel"][layer])
        assert np.trace(left[:, :3].T @ step @ right.T) > 0.6 * 3 * 0.2 * np.sqrt(4)


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_reduces_a_quadratic(name, boxed, params):
    goal = jax.tree.map(lambda x: x + 1.0, params)
    # A matrix of ones is one direction: an orthogonal step of RMS 0.2 covers a fifth of `lr` in it.
    lr = 0.3 if name == "muon" else 0.05
    schedule = "constant" if name == "schedule_free" else "linear"
    tx, _ = make(boxed, name, weight_decay=0.0, lr=lr, schedule=schedule)

    def loss(p):
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), p, goal)))

    @jax.jit
    def run(p):
        def body(carry, _):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(body, (p, tx.init(p)), None, length=100)[0]

    final, state = run(params)
    shown = optimizers.eval_params(name, state, final)
    assert float(loss(shown)) < 0.05 * float(loss(params))


def test_schedule_free_is_evaluated_at_its_average(params, gradients):
    """The float64 recurrence of Defazio 2024 (Adam without momentum, weights lr^2)."""
    tx, _ = make(params, "schedule_free", weight_decay=0.0, clip=100.0)
    after, state = trained(tx, params, gradients)
    shown = by_path(optimizers.eval_params("schedule_free", state, after))
    for path, y in by_path(params).items():
        x = z = y.astype(np.float64)
        v = np.zeros_like(x)
        for step, tree in enumerate(gradients):
            g = by_path(tree)[path].astype(np.float64)
            v = 0.95 * v + 0.05 * g * g
            z = z - LR * g / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
            x = x + (z - x) / (step + 1)
        np.testing.assert_allclose(shown[path], x, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(by_path(after)[path], 0.1 * z + 0.9 * x, rtol=2e-5, atol=1e-5)
    assert optimizers.eval_params("adamw", state, after) is after


@pytest.mark.parametrize(
    "path, shape, names, sides",
    [
        ("a/kernel", (4, 3), None, ((0,), (1,))),
        ("a/kernel", (2, 4, 3), None, None),
        ("a/bias", (3,), ("mlp",), None),
        ("a/scale", (2, 3), None, None),
        ("a/kernel", (4, 3), (None, None), ((0,), (1,))),
        ("a/w", (2, 4, 3), ("layers", "embed", "mlp"), ((1,), (2,))),
        (
            "a/w",
            (2, 4, 3, 5, 6),
            ("layers", "embed", None, "heads", "head_dim"),
            ((1,), (3, 4)),
        ),
        ("a/w", (5, 6, 4), ("heads", "head_dim", "embed"), ((0, 1), (2,))),
        ("a/w", (3, 3, 4, 8), (None, None, "conv_in", "conv_out"), ((0, 1, 2), (3,))),
        ("a/w", (2, 3, 4, 8), ("layers", None, "conv_in", "conv_out"), ((1, 2), (3,))),
        ("a/w", (3, 3, 1, 8), (None, None, "conv_in", "conv_out"), None),
        ("a/kernel", (4, 9), ("embed", "vocab"), None),
        ("a/kernel", (4, 1), ("embed", "mlp"), None),
        ("a/w", (2, 4), ("layers", "embed"), None),
        ("a/w", (5, 6), ("heads", "head_dim"), None),
    ],
)
def test_matrix_axes(path, shape, names, sides):
    expected = None if sides is None else contrib.MuonDimensionNumbers(*sides)
    assert muon.matrix_axes(path, shape, names) == expected


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"name": "lionn"}, "did you mean 'lion'"),
        (
            {"decay_skip": ("bias$", "scale$")},
            "optimizer.decay_skip: 'scale$' matches no parameter",
        ),
        ({"lr_multipliers": (("encoder", 0.1),)}, "optimizer.lr_multipliers: 'encoder'"),
        ({"lr_multipliers": (("head", -0.1),)}, "-0.1"),
        ({"b1": 1.0}, "optimizer.b1=1.0"),
        ({"clip": -1.0}, "optimizer.clip=-1.0"),
        ({"name": "adam", "weight_decay": 0.1}, "optimizer.weight_decay=0.1"),
        ({"name": "schedule_free", "schedule": "cosine"}, "optimizer.schedule=constant"),
        ({"name": "schedule_free", "b1": 0.0}, "optimizer.b1=0"),
    ],
)
def test_mistakes_are_named(changes, part, params):
    with pytest.raises(UserError) as caught:
        make(params, **changes)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    if "matches no" in part:
        assert "head/kernel" in str(caught.value)


def test_shapes_alone_are_enough(params):
    tx, _ = make(jax.eval_shape(lambda: params), "muon")
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


@pytest.mark.parametrize(("name", "coupled"), [("sgd", False), ("sgd_l2", True)])
def test_decay_is_part_of_the_gradient_or_stands_beside_it(name, coupled):
    tree, decay, momentum = {"w": jnp.array([1.0, -2.0])}, 0.3, 0.9
    tx, _ = make(tree, name, weight_decay=decay, b1=momentum, decay_skip=())
    state, w, v = tx.init(tree), np.array([1.0, -2.0]), np.zeros(2)
    for step in range(STEPS):
        grads = np.array([0.5, step - 2.0])
        updates, state = tx.update({"w": jnp.asarray(grads, jnp.float32)}, state, tree)
        tree = optax.apply_updates(tree, updates)
        v = momentum * v + grads + coupled * decay * w
        w = w - LR * (v + (not coupled) * decay * w)
        np.testing.assert_allclose(tree["w"], w, rtol=1e-5)
