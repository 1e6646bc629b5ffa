from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bigr_jax.errors import UserError
from bigr_jax.models.bigr import SIZES, BiGR, at_grid, named
from bigr_jax.nn.embed import Text

MODEL = BiGR(
    depth=2,
    width=16,
    heads=2,
    bits=5,
    grid=(2, 3),
    num_classes=4,
    head_width=8,
    head_blocks=1,
    ffn_hidden=24,
)
NULL = MODEL.num_classes
TOLD = MODEL.clone(text=(4, 3), parent=None)
NAMES = {"embed", "mlp", "heads", "head_dim", "codes", "layers", "position", "modulation", "time"}


def inputs(model, batch=1):
    bits = jnp.zeros((batch, model.length, model.bits))
    t = jnp.ones((batch, model.length), jnp.int32)
    return bits, jnp.zeros((batch,), jnp.int32), t > 0, bits, t


@pytest.fixture(scope="module")
def born():
    return jax.jit(MODEL.init)(jax.random.key(0), *inputs(MODEL))


@pytest.fixture(scope="module")
def variables(born):
    return moved(born)


def moved(born):
    """Away from the initial values, of which many are zero."""
    rng = np.random.default_rng(0)
    change = lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(change, nn.unbox(born))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {
        "bits": rng.integers(0, 2, (3, 6, 5)).astype(np.float32),
        "labels": np.array([1, 3, NULL]),
        "mask": np.array([[1, 0, 1, 0, 0, 1], [0] * 6, [1] * 6], bool),
        "x_t": rng.integers(0, 2, (3, 6, 5)).astype(np.float32),
        "t": rng.integers(1, 9, (3, 6)),
    }


def call(method):
    return jax.jit(lambda variables, *args: MODEL.apply(variables, *args, method=method))


hidden, condition = call("hidden"), call("condition")
features_all, predict = call("features_all"), call("__call__")


@pytest.mark.parametrize(
    "name, bits, count",
    [
        ("L", 24, 336_346_136),
        ("XL", 24, 799_372_824),
        ("XXL", 24, 1_480_028_184),
        ("L-512", 32, 372_718_624),
    ],
)
def test_published_parameter_counts(name, bits, count):
    model = named(name)
    shapes = jax.eval_shape(lambda key: model.init(key, *inputs(model)), jax.random.key(0))
    assert model.bits == bits
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_heads_have_64_channels_in_every_size():
    assert all(size["width"] == 64 * size["heads"] for size in SIZES.values())


def test_every_parameter_has_names(born):
    for path, leaf in flatten_dict(born["params"]).items():
        assert isinstance(leaf, nn.LogicallyPartitioned), path
        assert len(leaf.names) == leaf.value.ndim, path
        assert set(leaf.names) <= NAMES | {None}, path
        assert ("layers" in leaf.names) == ("layers" in path), path


def test_initial_distributions():
    model = MODEL.clone(width=128, num_classes=300, parent=None)
    p = nn.unbox(jax.jit(model.init)(jax.random.key(1), *inputs(model)))["params"]
    assert abs(p["mask_token"].std() - 1) < 0.2
    assert abs(p["position"].std() / 0.02 - 1) < 0.1
    assert abs(p["classes"]["table"].std() / 0.02 - 1) < 0.05
    assert abs(p["layers"]["modulation"]["offset"].std() * 128**0.5 - 1) < 0.1
    for kernel in (p["layers"]["mixer"]["qkv"], p["layers"]["mlp"]["down"]):
        assert abs(kernel["kernel"].std() / 0.02 - 1) < 0.05
    assert not p["modulation"]["linear"]["kernel"].any() and not p["embed"]["bias"].any()
    assert (p["norm"]["scale"] == 1).all()


def test_initial_logits_are_zero(born, batch):
    logits = predict(nn.unbox(born), *batch.values())
    assert logits.shape == (3, 6, 5) and logits.dtype == jnp.float32
    assert not logits.any()


def test_bits_under_the_mask_are_not_read(variables, batch):
    masked = batch["mask"][..., None]
    c = condition(variables, batch["labels"])
    plain = hidden(variables, batch["bits"], c, batch["mask"])
    other = hidden(variables, np.where(masked, 1 - batch["bits"], batch["bits"]), c, batch["mask"])
    np.testing.assert_array_equal(plain, other)
    other = hidden(variables, np.where(masked, batch["bits"], 1 - batch["bits"]), c, batch["mask"])
    assert abs(plain[:2] - other[:2]).max() > 1e-3
    np.testing.assert_array_equal(plain[2], other[2])


def test_mixtures_of_classes(variables, batch):
    first, second = (condition(variables, np.full(3, label)) for label in (1, 2))
    run = lambda c: np.asarray(hidden(variables, batch["bits"], c, batch["mask"]))  # noqa: E731
    np.testing.assert_array_equal(run(1.0 * first + 0.0 * second), run(first))
    half = run(0.5 * first + 0.5 * second)
    assert min(abs(half - run(first)).max(), abs(half - run(second)).max()) > 1e-3


def test_null_class_is_the_last_row(variables):
    table = variables["params"]["classes"]["table"]
    np.testing.assert_array_equal(
        condition(variables, np.array([NULL, 0, 1]))[:, 0], table[np.array([NULL, 0, 1])]
    )


def test_images_do_not_mix(variables, batch):
    c = condition(variables, batch["labels"])
    every = hidden(variables, batch["bits"], c, batch["mask"])
    one = hidden(variables, batch["bits"][1:2], c[1:2], batch["mask"][1:2])
    np.testing.assert_allclose(one, every[1:2], atol=1e-5)


def test_no_mask_is_an_empty_mask(variables, batch):
    c = condition(variables, batch["labels"])
    none = hidden(variables, batch["bits"], c, None)
    empty = hidden(variables, batch["bits"], c, np.zeros((3, 6), bool))
    np.testing.assert_allclose(none, empty, atol=1e-6)


def test_features_lie_before_the_last_norm_and_positions(variables, batch):
    every = features_all(variables, batch["bits"], batch["labels"])
    assert every.shape == (2, 3, 6, 16) and every.dtype == jnp.float32
    for layer in range(2):
        run = jax.jit(lambda v, *a, layer=layer: MODEL.apply(v, *a, layer, method="features"))
        one = run(variables, batch["bits"], batch["labels"])
        np.testing.assert_allclose(one, every[layer], atol=1e-5)
    p = variables["params"]
    power = (every[-1] ** 2).mean(-1, keepdims=True) + 1e-5
    wanted = every[-1] / np.sqrt(power) * p["norm"]["scale"] + p["position"]
    c = condition(variables, batch["labels"])
    actual = hidden(variables, batch["bits"], c, np.zeros((3, 6), bool))
    np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_denoiser_counts_time_from_zero(variables, batch):
    condition = np.random.default_rng(2).normal(size=(3, 6, 16)).astype(np.float32)
    args = (batch["x_t"], batch["t"], condition)
    actual = call("denoise")(variables, *args)
    inner = call(lambda model, x_t, t, c: model.denoiser(x_t, t - 1, c))(variables, *args)
    np.testing.assert_array_equal(actual, inner)


def test_training_call_reaches_every_parameter(variables, batch):
    def loss(variables, bits, labels, mask, *noisy):
        logits = MODEL.apply(variables, bits, labels, mask, *noisy)
        return (logits * mask[..., None]).var()

    flat = flatten_dict(jax.jit(jax.grad(loss))(variables, *batch.values())["params"])
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in flat.values())
    rows = np.abs(flat["classes", "table"]).max(axis=1) > 0
    asked = batch["labels"][batch["mask"].any(axis=1)]
    np.testing.assert_array_equal(np.flatnonzero(rows), sorted(asked))


def test_dropout_acts_in_training_only(variables, batch):
    c = condition(variables, batch["labels"])
    run = jax.jit(
        lambda key: MODEL.apply(
            variables,
            batch["bits"],
            c,
            batch["mask"],
            False,
            method="hidden",
            rngs={"dropout": key},
        )
    )
    plain = hidden(variables, batch["bits"], c, batch["mask"])
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert min(abs(first - plain).max(), abs(first - other).max()) > 1e-3


def test_without_adaln_the_class_is_a_token_only(variables, batch):
    plain = MODEL.clone(adaln=False, parent=None)
    shapes = jax.eval_shape(lambda key: plain.init(key, *inputs(plain)), jax.random.key(0))
    names = {"/".join(path) for path in flatten_dict(shapes["params"])}
    assert not any(name.startswith(("modulation", "layers/modulation")) for name in names)
    run = jax.jit(lambda c: plain.apply(variables, batch["bits"], c, None, method="hidden"))
    c = condition(variables, batch["labels"])
    assert abs(run(c) - run(c[::-1]))[0].max() > 1e-3


def test_low_precision_products(variables, batch):
    half = MODEL.clone(dtype=jnp.bfloat16, parent=None)
    logits = jax.jit(half.apply)(variables, *batch.values())
    exact = predict(variables, *batch.values())
    assert logits.dtype == jnp.float32
    assert 0 < abs(logits - exact).max() < 0.05 * abs(exact).max()


def test_pooled_features_are_means_over_tokens(variables, batch):
    every = features_all(variables, batch["bits"], np.full(3, NULL))
    actual = call("pooled")(variables, batch["bits"])
    assert actual.shape == (3, 2, 16)
    np.testing.assert_allclose(actual, every.mean(axis=2).swapaxes(0, 1), atol=1e-5)


@pytest.mark.parametrize("mixer", ["causal_attention", "causal"])
def test_a_causal_model_predicts_a_token_from_those_before_it(mixer, batch):
    # A state-space layer has heads of 64 channels.
    model = MODEL.clone(mixer=mixer, width=32, parent=None)
    assert model.causal and not MODEL.causal
    variables = moved(jax.jit(model.init)(jax.random.key(0), *inputs(model)))
    run = jax.jit(lambda bits, c, mask: model.apply(variables, bits, c, mask, method="hidden"))
    c = jax.jit(lambda labels: model.apply(variables, labels, method="condition"))(batch["labels"])
    plain = run(batch["bits"], c, batch["mask"])
    np.testing.assert_array_equal(plain, run(batch["bits"], c, ~batch["mask"]))
    for token in range(6):
        bits = batch["bits"].copy()
        bits[:, token] = 1 - bits[:, token]
        change = abs(run(bits, c, batch["mask"]) - plain).max(axis=(0, 2))
        assert not change[: token + 1].any()
        assert (change[token + 1 :] > 1e-4).all()
    assert abs(run(batch["bits"], c[::-1], batch["mask"]) - plain)[0, 0].max() > 1e-3


def test_a_mixer_that_sees_maps_is_told_the_grid_of_the_codes(batch):
    model = MODEL.clone(mixer="routing", parent=None)
    variables = moved(jax.jit(model.init)(jax.random.key(0), *inputs(model)))
    mixer = variables["params"]["layers"]["mixer"]
    # The convolution over rows and columns is there only where there is a map.
    assert mixer["local"]["kernel"].shape == (model.depth, 5, 5, 1, model.width)
    run = jax.jit(lambda bits, c, mask: model.apply(variables, bits, c, mask, method="hidden"))
    c = model.apply(variables, batch["labels"], method="condition")
    plain = run(batch["bits"], c, batch["mask"])
    # The class stands in front, and all see it.
    assert (abs(run(batch["bits"], c[::-1], batch["mask"]) - plain)[0].max(-1) > 1e-4).all()
    hidden = np.where(batch["mask"][..., None], 1 - batch["bits"], batch["bits"])
    np.testing.assert_array_equal(plain, run(hidden, c, batch["mask"]))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: named("LL"), "size='LL' is not known.*legal: B, L, XL, XXL, L-512"),
        (lambda: named("L", detph=3), "field of BiGR='detph'.*did you mean 'depth'"),
        (lambda: MODEL.clone(heads=3), "width=16 is not a multiple of 4 \\* heads = 12"),
        (lambda: MODEL.clone(mixer="hidra"), "mixer='hidra'"),
        (lambda: MODEL.clone(remat="some"), "remat='some'.*none, dots, full"),
    ],
)
def test_mistakes_in_a_config_are_named(make, text):
    with pytest.raises(UserError, match=text):
        make().init(jax.random.key(0), *inputs(MODEL))


def test_layer_of_features_must_exist(variables, batch):
    with pytest.raises(UserError, match=r"layer=2 does not exist; legal: 0\.\.1"):
        MODEL.apply(variables, batch["bits"], batch["labels"], 2, method="features")


def test_bits_must_fill_the_grid(variables, batch):
    c = condition(variables, batch["labels"])
    with pytest.raises(ValueError, match=r"\(3, 1, 5\) are not \[batch, 6, 5\]"):
        hidden(variables, batch["bits"][:, :1], c, None)


def test_overrides_of_a_named_size():
    model = named("XXL", bits=32, dropout=0.0)
    assert (model.bits, model.dropout, model.depth, model.grid) == (32, 0.0, 48, (16, 16))


def texts(*lengths):
    features = np.random.default_rng(3).normal(size=(len(lengths), 4, 3)).astype(np.float32)
    return Text(features, np.arange(4) < np.array(lengths)[:, None])


@pytest.fixture(scope="module")
def told():
    bits, _, *rest = inputs(TOLD)
    rng = np.random.default_rng(0)
    born = nn.unbox(jax.jit(TOLD.init)(jax.random.key(0), bits, texts(4), *rest))
    moved = lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(moved, born)


@jax.jit
def of_text(variables, bits, text, mask):
    condition = TOLD.apply(variables, text, method="condition")
    return TOLD.apply(variables, bits, condition, mask, method="hidden")


def test_texts_take_the_place_of_classes_and_of_nothing_else(born, told):
    plain = {path: leaf.shape for path, leaf in flatten_dict(nn.unbox(born)["params"]).items()}
    other = {path: leaf.shape for path, leaf in flatten_dict(told["params"]).items()}
    assert plain.pop(("classes", "table")) == (5, 16)
    assert {path: other[path] for path in plain} == plain
    assert {path[0] for path in other.keys() - plain.keys()} == {"captions"}
    assert set(told) == {"params", "buffers"} and set(born) == {"params"}


def test_every_word_is_read_and_no_padding(told, batch):
    text = texts(4, 2, 3)
    plain = of_text(told, batch["bits"], text, batch["mask"])
    assert plain.shape == (3, 6, 16) and plain.dtype == jnp.float32
    for place in range(4):
        changed = text.features.copy()
        changed[:, place] += 1.0
        moved = of_text(told, batch["bits"], text._replace(features=changed), batch["mask"])
        change = abs(moved - plain).max(axis=(1, 2))
        np.testing.assert_array_equal(change > 1e-4, text.mask[:, place])


def test_without_adaln_words_reach_the_image_by_attention(told, batch):
    model = TOLD.clone(adaln=False, parent=None)
    run = jax.jit(
        lambda text: model.apply(
            told, batch["bits"], model.apply(told, text, method="condition"), None, method="hidden"
        )
    )
    text = texts(2, 2, 2)
    plain, other = run(text), run(text._replace(features=text.features[::-1].copy()))
    assert abs(plain - other)[0].max() > 1e-3
    behind = text._replace(features=np.where(text.mask[..., None], text.features, 7.0))
    np.testing.assert_array_equal(plain, run(behind))


def test_an_empty_text_is_what_representations_are_of(told, batch):
    null = TOLD.null(3)
    np.testing.assert_array_equal(
        of_text(told, batch["bits"], null, batch["mask"]),
        of_text(told, batch["bits"], texts(0, 0, 0), batch["mask"]),
    )
    run = jax.jit(lambda *a: TOLD.apply(told, *a, method="features_all"))
    every = run(batch["bits"], null)
    assert every.shape == (2, 3, 6, 16)
    pooled = TOLD.apply(told, batch["bits"], method="pooled")
    np.testing.assert_allclose(pooled, every.mean(2).swapaxes(0, 1), atol=1e-5)


def test_training_on_texts_reaches_every_parameter(told, batch):
    inner = (batch["mask"], batch["x_t"], batch["t"])

    def loss(params, text):
        logits = TOLD.apply({**told, "params": params}, batch["bits"], text, *inner)
        return (logits * batch["mask"][..., None]).var()

    flat = flatten_dict(jax.jit(jax.grad(loss))(told["params"], texts(3, 1, 0)))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in flat.values())


def test_a_causal_model_reads_its_text_first(told, batch):
    model = TOLD.clone(mixer="causal_attention", parent=None)
    run = jax.jit(
        lambda bits, text: model.apply(
            told, bits, model.apply(told, text, method="condition"), None, method="hidden"
        )
    )
    text = texts(4, 2, 1)
    plain = run(batch["bits"], text)
    bits = batch["bits"].copy()
    bits[:, 3] = 1 - bits[:, 3]
    change = abs(run(bits, text) - plain).max(axis=(0, 2))
    assert not change[:4].any() and (change[4:] > 1e-4).all()
    other = run(batch["bits"], text._replace(features=-text.features))
    assert (abs(other - plain).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("model, given", [(MODEL, texts(1)), (TOLD, np.zeros(1, int))])
def test_the_other_kind_of_condition_is_refused(model, given):
    bits, _, *rest = inputs(model)
    with pytest.raises(ValueError, match="is conditioned on"):
        jax.eval_shape(model.init, jax.random.key(0), bits, given, *rest)


def test_texts_have_tokens_and_features():
    with pytest.raises(UserError, match=r"text=\(3,\) is not \(tokens, features\)"):
        wrong = MODEL.clone(text=(3,), parent=None)
        jax.eval_shape(wrong.init, jax.random.key(0), *inputs(wrong))


def test_its_own_grid_changes_nothing():
    assert at_grid(MODEL, (2, 3)) == MODEL
    assert at_grid(at_grid(MODEL, (4, 6)), (2, 3)) == MODEL


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_another_grid_reads_the_same_variables(variables, grid):
    wanted = at_grid(MODEL, grid)
    assert wanted.length == grid[0] * grid[1]
    shapes = jax.eval_shape(wanted.init, jax.random.key(0), *inputs(wanted))
    assert jax.tree.map(jnp.shape, nn.unbox(shapes)) == jax.tree.map(jnp.shape, variables)


def positions(net, variables, embedding):
    """What the position embedding adds to the hidden vectors, [rows, cols, D]."""
    params, bits = variables["params"], jnp.zeros((1, net.length, net.bits))

    @jax.jit
    def hidden(embedding):
        own = {"params": {**params, "position": embedding}}
        condition = net.apply(own, jnp.array([1]), method="condition")
        return net.apply(own, bits, condition, None, method="hidden")

    embedding = jnp.asarray(embedding, jnp.float32)
    found = hidden(embedding) - hidden(jnp.zeros_like(embedding))
    return np.asarray(found).reshape(*net.grid, net.width)


def test_ramps_are_scaled_to_a_finer_grid(variables):
    net = MODEL.clone(grid=(8, 8), parent=None)
    slopes = np.random.default_rng(5).normal(size=(2, 16))
    ramp = np.moveaxis(np.indices((8, 8)), 0, -1).reshape(64, 2) @ slopes
    own = positions(net, variables, ramp)
    np.testing.assert_allclose(own.reshape(64, 16), ramp, atol=1e-5)
    finer = positions(at_grid(net, (16, 16)), variables, ramp)
    # Pixel centres, not corners, lie on each other.
    places = (np.moveaxis(np.indices((16, 16)), 0, -1) - 0.5) / 2
    inner = slice(3, -3)
    np.testing.assert_allclose(finer[inner, inner], (places @ slopes)[inner, inner], atol=1e-5)
    # What lies beyond the border is not known: there it may be off by what one step climbs.
    assert (abs(finer - places @ slopes) < abs(slopes).sum(0)).all()


def test_rotations_come_closer_or_go_on():
    closer, on = at_grid(MODEL, (4, 6)), at_grid(MODEL, (4, 6), "extrapolated")
    assert (closer.rope_grid, on.rope_grid) == ((2, 3), None)
    assert at_grid(closer, (8, 12)).rope_grid == (2, 3)
    assert at_grid(closer, (2, 3)) == MODEL
    with pytest.raises(UserError, match="positions='nearest' is not known"):
        at_grid(MODEL, (4, 6), "nearest")


@pytest.mark.parametrize("rotations", ["interpolated", "extrapolated"])
def test_a_model_runs_at_another_grid(variables, rotations):
    net = at_grid(MODEL, (4, 6), rotations)
    logits = net.apply(variables, *inputs(net))
    assert logits.shape == (1, 24, 5) and np.isfinite(logits).all()
