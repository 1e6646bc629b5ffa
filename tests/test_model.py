"""A trained model in three lines: what it takes, what it gives, and how often it compiles."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigr_jax import model as models
from bigr_jax.blend import seamless
from bigr_jax.data.image import fit
from bigr_jax.errors import UserError
from bigr_jax.generate import editing
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.losses.bits import BitObjective
from bigr_jax.model import Model
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.ops.bernoulli import make_schedule
from bigr_jax.tasks import editing as programs
from bigr_jax.tasks.autoencoder import decode, encode
from bigr_jax.tasks.code_generator import CodeGenerator
from bigr_jax.train.sharding import make_mesh

TOKENIZER = BinaryAutoencoder(
    filters=2, multipliers=(1, 2), blocks=1, attention_resolutions=(), embedding=4, bits=3,
    image_size=8, channels=1, groups=2,
)  # fmt: skip
NET = BiGR(
    depth=2, width=8, heads=1, bits=3, grid=(4, 4), num_classes=3, head_width=4, head_blocks=1,
    ffn_hidden=8, target="direct",
)  # fmt: skip
NAMES = ("cat", "dog", "owl")
TASK = CodeGenerator(
    NET, TOKENIZER, None, BitObjective(target="direct"), make_schedule("linear", 1),
    MaskedSampling(iterations=1, denoise_steps=1, cfg_scale=2.0), 0.1, False, "", 1, False,
)  # fmt: skip
# What is compiled in the tests: one pass each.
FAST = {"iterations": 1}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
MASK = np.arange(8) < 4 + np.zeros((8, 1))


def random_like(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes)
    )


@pytest.fixture(scope="module")
def variables():
    batch = {"image": jnp.zeros((1, 8, 8, 1), jnp.uint8), "label": jnp.zeros((1,), int)}
    own = jax.eval_shape(lambda key: TASK.init(key, batch, {}), jax.random.key(0))
    pixels = jnp.zeros((1, 8, 8, 1))
    tokenizer = jax.eval_shape(TOKENIZER.init, jax.random.key(0), pixels)["params"]
    below = {"params": {"autoencoder": random_like(tokenizer, 1)}}
    return {"generator": random_like(own, 0), "tokenizer": below}


def make(variables, task=TASK, batch=4):
    mesh = make_mesh({"data": 1, "fsdp": 1, "model": 1, "seq": 1})
    return Model(task, variables, NAMES, mesh, batch=batch)


@pytest.fixture(scope="module")
def model(variables):
    return make(variables)


def test_what_a_model_tells_of_itself(model):
    assert (model.size, model.channels, model.num_classes) == (8, 1, 3)
    assert model.class_names == NAMES


def test_samples_do_not_depend_on_those_beside_them(model):
    labels = [0, "dog", 2, "owl", 1, 0]
    found = model.sample(labels, seed=3)
    assert found.shape == (6, 8, 8, 1) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, model.sample([0, 1, 2, 2, 1, 0], seed=3))
    np.testing.assert_array_equal(found[:4], model.sample(labels[:4], seed=3))
    assert model.sample("owl").shape == (1, 8, 8, 1)
    assert not np.array_equal(found, model.sample(labels, seed=4))


def test_other_sizes_are_drawn_and_read(model):
    wide = model.at_size(12)
    assert (wide.size, model.size, wide.at_size(8).generator) == (12, 8, model.generator)
    assert wide.sample([0, "owl"], **FAST).shape == (2, 12, 12, 1)
    found = wide.inpaint(IMAGES[0], MASK, **FAST)
    assert found.shape == (1, 12, 12, 1)
    np.testing.assert_array_equal(found[0, :, 6:], fit(IMAGES[:1], 12, 1)[0, :, 6:])
    assert wide.features(IMAGES).shape == model.features(IMAGES).shape
    with pytest.raises(UserError, match="size=9 is not a multiple of 2 pixels"):
        model.at_size(9)


def test_one_program_for_each_setting_and_shape(variables, monkeypatch):
    traced = []

    def counted(task, variables, key, numbers, labels, *, sampling):
        traced.append((len(labels), sampling.iterations))
        return jnp.zeros((len(labels), 8, 8, 1), jnp.uint8)

    monkeypatch.setitem(programs.PROGRAMS, "sample", counted)
    model = make(variables)
    for count in (1, 3, 4, 9, 2, 3):
        assert model.sample([0] * count, seed=count).shape == (count, 8, 8, 1)
    # Powers of two up to the batch, and a long list by the batch.
    assert traced == [(1, 1), (4, 1), (2, 1)]
    for _ in range(2):
        model.sample([0], iterations=2)
    assert traced[3:] == [(1, 2)]
    several = make(variables, batch=3)
    several.sample([0] * 7)
    assert traced[4:] == [(3, 1)]


def test_inpainting_leaves_the_rest_as_it_is(model):
    found = model.inpaint(IMAGES[0], MASK, samples=3, **FAST)
    assert found.shape == (3, 8, 8, 1) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, :, 4:], np.stack([IMAGES[0, :, 4:]] * 3))
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0, :, :4], IMAGES[0, :, :4])
    raw = model.inpaint(IMAGES[0], MASK, samples=3, blend=False, **FAST)
    np.testing.assert_array_equal(found, seamless(raw, IMAGES[0], MASK))
    several = model.inpaint(IMAGES, MASK, samples=3, **FAST)
    assert several.shape == (3, 3, 8, 8, 1)
    np.testing.assert_array_equal(several[0], found)
    np.testing.assert_array_equal(several[:, :, :, 4:], IMAGES[:, None, :, 4:].repeat(3, 1))


def test_known_tokens_are_those_of_the_image(model, variables, monkeypatch):
    kept = {}

    def spied(net, variables, keys, codes, mask, *rest, **how):
        kept.update(codes=codes, mask=mask, labels=how["labels"])
        return codes

    monkeypatch.setattr(editing, "inpaint", spied)
    with jax.disable_jit():
        fresh = make(variables)
        raw = fresh.inpaint(IMAGES, MASK, blend=False)
    assert kept["labels"] is None
    expected = np.tile([True, True, False, False], (4, 4)).reshape(4, 16)
    np.testing.assert_array_equal(kept["mask"], expected)
    # Drawn, as in training: a bit is 1 as often as the tokenizer says.
    own = {"params": variables["tokenizer"]["params"]["autoencoder"]}
    logits = TOKENIZER.apply(own, IMAGES / np.float32(255), method="encode")
    sure = np.asarray(encode(TOKENIZER, variables["tokenizer"], IMAGES / np.float32(255)))
    codes, p = np.asarray(kept["codes"])[:3], np.asarray(nn.sigmoid(logits)).reshape(3, 16, 3)
    assert set(np.unique(codes)) == {0.0, 1.0} and (codes != sure).any()
    assert (codes == sure).mean() > 0.5
    clear = np.abs(p - 0.5) > 0.499
    np.testing.assert_array_equal(codes[clear], sure[clear])
    shown = decode(TOKENIZER, variables["tokenizer"], jnp.asarray(codes))
    assert np.abs(raw[:, 0].astype(int) - np.round(np.asarray(shown) * 255)).max() <= 1


def test_outpainting_keeps_what_is_marked_and_editing_draws_a_class(model):
    around = model.outpaint(IMAGES[0], MASK, seed=2, **FAST)
    np.testing.assert_array_equal(around, model.inpaint(IMAGES[0], ~MASK, seed=2, **FAST))
    np.testing.assert_array_equal(around[0, :, :4], IMAGES[0, :, :4])
    edited = model.edit(IMAGES[0], MASK, "dog", seed=2, **FAST)
    np.testing.assert_array_equal(edited, model.inpaint(IMAGES[0], MASK, label=1, seed=2, **FAST))
    assert not np.array_equal(edited, model.inpaint(IMAGES[0], MASK, seed=2, **FAST))
    each = model.edit(IMAGES, MASK, ["dog", 2, 0], seed=2, **FAST)
    np.testing.assert_array_equal(each[0], edited)


def test_images_of_other_kinds_and_sizes(model):
    large = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[:, :15] = True
    expected = fit(large[None], 8, 1)
    for image in (large, Image.fromarray(large), large / 255.0):
        found = model.inpaint(image, mask, **FAST)
        np.testing.assert_array_equal(found[:, :, 4:], expected[:, :, 4:])
    np.testing.assert_array_equal(
        model.inpaint(expected[0, ..., 0], Image.fromarray(MASK), **FAST), found
    )


def test_interpolation_goes_from_class_to_class(model):
    found = model.interpolate("cat", 2, steps=4, seed=5, iterations=1)
    assert found.shape == (1, 4, 8, 8, 1) and found.dtype == np.uint8
    # Every image of the way has the first key, and an end is its class.
    for end, label in ((0, 0), (-1, 2)):
        alone = model.sample(label, seed=5, cfg_scale=2.5, iterations=1)
        np.testing.assert_array_equal(found[0, end], alone[0])
    shares = model.interpolate(0, 2, steps=(0.0, 1 / 3, 2 / 3, 1.0), seed=5, iterations=1)
    np.testing.assert_array_equal(shares, found)
    ways = model.interpolate(0, 2, steps=2, samples=2, seed=5, iterations=1)
    np.testing.assert_array_equal(ways[0], found[0, [0, -1]])
    assert ways.shape == (2, 2, 8, 8, 1) and not np.array_equal(ways[0], ways[1])


def test_enrichment_starts_from_a_coarse_image(model, variables, monkeypatch):
    found = model.enrich(IMAGES[0], samples=2, sweeps=1, **FAST)
    assert found.shape == (2, 8, 8, 1) and found.dtype == np.uint8
    seen = []

    def kept(task, variables, key, numbers, images, *, sampling, sweeps):
        seen.append((np.asarray(images[0]), sampling, sweeps))
        return images

    monkeypatch.setitem(programs.PROGRAMS, "enrich", kept)
    with jax.disable_jit():
        for options in ({}, {"reduce": 1, "sweeps": 2, "cfg_scale": 3.0}):
            make(variables).enrich(IMAGES[0], **options)
    (coarse, first, sweeps), (same, second, other) = seen
    small = Image.fromarray(IMAGES[0, ..., 0]).resize((4, 4), Image.Resampling.BILINEAR)
    again = small.resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(coarse[..., 0], np.asarray(again))
    np.testing.assert_array_equal(same, IMAGES[0])
    assert (sweeps, other) == (4, 2)
    assert (first.iterations, first.cfg_scale, second.cfg_scale) == (20, 10.0, 3.0)


def test_codes_and_back(model, variables):
    codes = model.encode(IMAGES)
    assert codes.shape == (3, 16, 3) and codes.dtype == np.uint8
    pixels = IMAGES / np.float32(255)
    np.testing.assert_array_equal(codes, encode(TOKENIZER, variables["tokenizer"], pixels))
    images = model.decode(codes)
    exact = decode(TOKENIZER, variables["tokenizer"], jnp.asarray(codes, jnp.float32))
    assert images.dtype == np.uint8
    assert np.abs(images - np.asarray(exact) * 255).max() <= 0.5 + 1e-3
    with pytest.raises(ValueError, match=r"codes \(2, 3\) are not \[N, 16, 3\]"):
        model.decode(codes[0, :2])


def test_features_are_those_of_no_class(model, variables):
    codes = model.encode(IMAGES).astype(np.float32)
    pooled = jax.jit(lambda own: NET.apply(own, codes, method="pooled"))
    expected = pooled(variables["generator"])
    found = model.features(IMAGES)
    assert found.shape == (3, 2, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for layer in (0, 1):
        np.testing.assert_allclose(model.features(IMAGES, layer), found[:, layer], atol=1e-5)
    with pytest.raises(UserError, match="layer=2 does not exist"):
        model.features(IMAGES, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(3), "labels=3 is no class; legal: 0 to 2, or a name: cat, dog, owl"),
        (lambda m: m.sample("dgo"), "did you mean 'dog'"),
        (lambda m: m.sample(0, cfg_scal=2.0), "'cfg_scal' is not known .*did you mean 'cfg_scale'"),
        (lambda m: m.inpaint(IMAGES[0], MASK, iteration=3), "did you mean 'iterations'"),
        (lambda m: m.inpaint(IMAGES[0], ~(MASK | True)), "mask marks nothing of the image"),
        (lambda m: m.inpaint(IMAGES[0], np.eye(1, 64).reshape(8, 8)), "mask: nothing is to be"),
        (lambda m: m.outpaint(IMAGES[0], MASK | True), "2 x 2 pixels of the image at 8 x 8"),
        (lambda m: m.inpaint(IMAGES[0], MASK[:4]), "mask: 4 x 8 is of another aspect"),
        (lambda m: m.inpaint(IMAGES, MASK, samples=0), "samples=0; legal: 1 and more"),
        (lambda m: m.edit(IMAGES, MASK, [0, 1]), "label: 2 labels for 3 images"),
        (lambda m: m.interpolate(0, "x"), "label 'x'='x' is no class"),
        (lambda m: m.interpolate(0, 1, steps=0), "steps=0; legal"),
        (lambda m: m.interpolate(0, 1, steps=(0.0, 2.0)), r"steps=\(0.0, 2.0\); legal"),
        (lambda m: m.enrich(IMAGES, sweeps=True), "sweeps=True; legal"),
        (lambda m: m.enrich(IMAGES, reduce=0), "reduce=0; legal"),
        (lambda m: m.inpaint(np.zeros(3), MASK), "image of shape"),
    ],
)
def test_mistakes_are_named(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_what_a_model_was_not_trained_for(variables):
    unconditional = make(variables, dataclasses.replace(TASK, label_drop=1.0))
    with pytest.raises(UserError, match="label: this model was trained without classes"):
        unconditional.edit(IMAGES, MASK, 0)
    with pytest.raises(UserError, match="interpolate: this model was trained without classes"):
        unconditional.interpolate(0, 1)
    conditional = make(variables, dataclasses.replace(TASK, label_drop=0.0))
    with pytest.raises(UserError, match=r"masking.label_drop=0, .* give one"):
        conditional.inpaint(IMAGES, MASK)
    with pytest.raises(UserError, match="batch=0: legal: 1 and more"):
        make(variables, batch=0)


def test_a_run_without_such_a_model_is_refused():
    run = SimpleNamespace(
        methods={"first": SimpleNamespace(model=None)}, config=SimpleNamespace(slug="tiny")
    )
    with pytest.raises(UserError, match="tiny has no generator of images from codes"):
        models.from_run(run)
    with pytest.raises(UserError, match="nowhere is no work directory"):
        models.load("nowhere")


def test_a_trained_run_is_loaded(smoke):
    model = models.load(smoke)
    assert (model.size, model.channels, model.num_classes) == (8, 1, 10)
    assert model.class_names[3] == "3"
    image = IMAGES[0]
    found = model.inpaint(image, MASK, iterations=1, denoise_steps=1, samples=2)
    np.testing.assert_array_equal(found[:, :, 4:], np.stack([image[:, 4:]] * 2))
    codes = model.encode(image)
    assert codes.shape == (1, 16, 8)


def test_a_tokenizer_is_loaded_alone(smoke, tmp_path):
    shutil.copytree(smoke, tmp_path, ignore=shutil.ignore_patterns("generator"), dirs_exist_ok=True)
    with pytest.raises(UserError, match="stage 'generator' is at step 0"):
        models.load(tmp_path)
    with pytest.raises(UserError, match="stage='generator' is not known; legal: tokenizer"):
        models.load(tmp_path, stage="generator")
    model = models.load(tmp_path, stage="tokenizer")
    codes = model.encode(IMAGES[:1])
    np.testing.assert_array_equal(codes, models.load(smoke).encode(IMAGES[:1]))
    assert model.decode(codes).shape == (1, 8, 8, 1)
    with pytest.raises(UserError, match="sample: this model was loaded with stage='tokenizer'"):
        model.sample([3])
