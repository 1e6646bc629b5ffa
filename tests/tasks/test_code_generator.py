"""The generator of codes: stored codes for images, texts for classes, and other sizes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.data.captioned import CaptionedSource
from bigr_jax.data.source import ArraySource, Info
from bigr_jax.errors import UserError
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitObjective
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.convnet import ConvNet
from bigr_jax.nn.embed import Text
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.ops.packing import pack_bits
from bigr_jax.tasks.autoencoder import encode
from bigr_jax.tasks.code_generator import CodeGenerator

TOKENIZER = BinaryAutoencoder(
    filters=4, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), embedding=8, bits=3,
    image_size=8, channels=1, groups=2,
)  # fmt: skip
NET = BiGR(
    depth=1, width=8, heads=1, bits=3, grid=(4, 4), num_classes=2, head_width=4, head_blocks=1,
    ffn_hidden=8, dropout=0.0,
)  # fmt: skip
CLASSES = CodeGenerator(
    net=NET,
    tokenizer=TOKENIZER,
    referee=None,
    objective=BitObjective("flip"),
    schedule=make_schedule("linear", 4),
    sampling=MaskedSampling(iterations=1, denoise_steps=1, cfg_scale=1.0),
    label_drop=0.5,
    mask_per_batch=False,
    augmentation="",
    per_class=2,
    probed=True,
)
TEXTS = dataclasses.replace(
    CLASSES,
    net=NET.clone(text=(2, 3), parent=None),
    sampling=MaskedSampling(iterations=1, denoise_steps=1, cfg_scale=1.5),
    probed=False,
)
TASKS = {"classes": CLASSES, "texts": TEXTS}
ROWS = 12
KEY = jax.random.key(1)


def pictures(rows=ROWS):
    return np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {
        "image": pictures(),
        "label": np.arange(ROWS) % 2,
        "text": rng.normal(size=(ROWS, 2, 3)).astype(np.float32),
        "text_mask": np.ones((ROWS, 2), bool),
        "mask": np.ones(ROWS, np.float32),
    }


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(TOKENIZER.init, KEY, jnp.zeros((1, 8, 8, 1)))["params"]
    drawn = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    return {"tokenizer": {"params": {"autoencoder": jax.tree.map(drawn, nn.unbox(shapes))}}}


@pytest.fixture(scope="module")
def variables(batch):
    return {name: moved(task, batch) for name, task in TASKS.items()}


def moved(task, batch):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda key: task.init(key, batch, {}), KEY)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), nn.unbox(shapes)
    )


@pytest.fixture(scope="module")
def stored(batch, given):
    """The batch with rounded codes in place of its images."""
    codes = encode(TOKENIZER, given["tokenizer"], batch["image"] / np.float32(255))
    rest = {name: value for name, value in batch.items() if name != "image"}
    return {**rest, "codes": pack_bits(codes)}


@pytest.fixture(scope="module")
def sources(batch):
    info = Info("two", 2, ("zero", "one"), (8, 8, 1), "none", "random")
    labels, which = batch["label"], np.arange(ROWS) % 3
    text = (batch["text"][:3], batch["text_mask"][:3])
    plain = ArraySource(batch["image"], labels, info)
    told = CaptionedSource(batch["image"], labels, info, ("a", "b", "c"), which, text)
    return {"classes": plain, "texts": told}


def both(source):
    return {"train": source, "test": source}


def test_the_method_knows_its_model():
    method = CLASSES.method()
    assert method.model is CLASSES and method.needs == ("tokenizer",)
    seen = dataclasses.replace(CLASSES, referee=ConvNet(2, (8,)))
    assert seen.method().needs == ("tokenizer", "referee")


@pytest.mark.parametrize("name", TASKS)
def test_stored_codes_measure_as_their_images_do(variables, batch, stored, given, name):
    evaluate = jax.jit(TASKS[name].evaluate)
    first = evaluate(variables[name], KEY, batch, given)
    second = evaluate(variables[name], KEY, stored, given)
    for metric in ("loss", "bits_per_image"):
        np.testing.assert_allclose(second[metric].value, first[metric].value, rtol=1e-6)
        assert second[metric].weight == first[metric].weight > 0


@pytest.mark.parametrize("name", TASKS)
def test_stored_codes_are_learnt_from(variables, stored, given, name):
    loss = lambda variables: TASKS[name].loss(variables, KEY, stored, given)  # noqa: E731
    (value, aux), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables[name])
    assert np.isfinite(value) and 0 <= aux.metrics["bit_accuracy"] <= 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes["params"]))


def test_codes_of_another_size_are_refused(variables, stored, given):
    wrong = {**stored, "codes": stored["codes"][:, :-1]}
    with pytest.raises(ValueError, match="packed codes are uint8"):
        CLASSES.loss(variables["classes"], KEY, wrong, given)


def test_where_none_is_told_all_conditions_are_null(batch):
    for task in (CLASSES, TEXTS):
        silent = dataclasses.replace(task, label_drop=1.0)
        asked, null = silent.asked(task.condition(batch)), task.net.null(ROWS)
        assert jax.tree.all(jax.tree.map(np.array_equal, asked, null))
        kept = task.asked(task.condition(batch))
        assert jax.tree.all(jax.tree.map(np.array_equal, kept, task.condition(batch)))


def test_the_text_decides_what_is_drawn(variables, batch, given):
    sample = jax.jit(TEXTS.sample)
    text = TEXTS.condition(batch)
    plain = sample(variables["texts"], KEY, text, given)
    assert plain.shape == (ROWS, 8, 8, 1) and plain.dtype == jnp.float32
    assert np.array_equal(plain, sample(variables["texts"], KEY, text, given))
    other = sample(variables["texts"], KEY, Text(-text.features, text.mask), given)
    assert not np.array_equal(plain, other)
    with pytest.raises(ValueError, match="conditioned on a Text"):
        TEXTS.sample(variables["texts"], KEY, batch["label"], given)


def test_captions_are_drawn_and_shown(variables, sources, given):
    found = TEXTS.report(variables["texts"], KEY, both(sources["texts"]), given)
    assert found.metrics == {} and found.images["samples"].dtype == np.uint8
    net = ConvNet(3, (8,))
    judged = dataclasses.replace(TEXTS, referee=net, per_class=4)
    read = {**given, "referee": net.init(KEY, jnp.zeros((1, 8, 8, 1)))}
    metrics = judged.report(variables["texts"], KEY, both(sources["texts"]), read).metrics
    top, other = metrics["caption_top1"], metrics["caption_top1_shuffled"]
    assert 0 <= top <= 1 and top + 2 * other == pytest.approx(1)
    assert "frechet" in metrics and "probe" not in metrics


def test_a_source_of_codes_alone_shows_samples_and_no_metrics(variables, sources, given, stored):
    rows = {name: np.asarray(stored[name]) for name in ("codes", "label")}
    source = SimpleNamespace(
        info=sources["classes"].info,
        gather=lambda indices: {name: value[indices] for name, value in rows.items()},
    )
    judged = dataclasses.replace(CLASSES, referee=ConvNet(2, (8,)))
    read = {**given, "referee": judged.referee.init(KEY, jnp.zeros((1, 8, 8, 1)))}
    found = judged.report(variables["classes"], KEY, both(source), read)
    assert found.metrics == {} and found.images["samples"].ndim == 3


def test_another_size_has_the_same_layers(given):
    wide = CLASSES.at_size(16)
    assert (wide.net.grid, wide.net.rope_grid, wide.tokenizer.grid) == ((8, 8), (4, 4), 8)
    assert CLASSES.at_size(8) == CLASSES
    assert CLASSES.at_size(16, "extrapolated").net.rope_grid is None
    shapes = jax.eval_shape(wide.tokenizer.init, KEY, jnp.zeros((1, 16, 16, 1)))["params"]
    own = given["tokenizer"]["params"]["autoencoder"]
    assert jax.tree.map(jnp.shape, nn.unbox(shapes)) == jax.tree.map(jnp.shape, own)


def test_images_of_another_size_are_drawn(variables, given):
    wide = CLASSES.at_size(12)
    images = jax.jit(wide.sample)(variables["classes"], KEY, jnp.array([0, 1, 2]), given)
    assert images.shape == (3, 12, 12, 1) and np.isfinite(images).all()


@pytest.mark.parametrize(
    "size, positions, text",
    [(9, "interpolated", "size=9 is not a multiple of 2"), (12, "near", "positions='near'")],
)
def test_sizes_that_do_not_fit_are_named(size, positions, text):
    with pytest.raises(UserError, match=text):
        CLASSES.at_size(size, positions)
