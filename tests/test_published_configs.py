"""The published configs build whole, without allocating: sizes, optimizers, patterns, durations."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from bigr_jax import config
from bigr_jax.data.absent import open_or_describe
from bigr_jax.errors import UserError
from bigr_jax.interop.torch import published
from bigr_jax.train import sharding
from bigr_jax.train.run import Run

# Published transformer, published tokenizer, batch.
WANTED = {
    "paper": ("BiGR-L-d24", "B-AE-d24", 1024),
    "paper_xl": ("BiGR-XL-d24", "B-AE-d24", 512),
    "paper_xxl": ("BiGR-XXL-d32", "B-AE-d32", 512),
    "paper_l512": ("BiGR-L-512-d32", "B-AE-d32-512", 512),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "few.npz"
    rng = np.random.default_rng(0)
    np.savez(path, image=rng.integers(0, 256, (20, 8, 8, 3), np.uint8), label=np.arange(20) % 2)
    return path


@pytest.mark.parametrize("variant", WANTED)
def test_published_variant_builds(variant, images, tmp_path):
    changes = {"data.source": f"npz:{images}", "tokenizer_loss.perceptual": "none"}
    run = Run(config.load(f"bigr:{variant}", changes), str(tmp_path / "run"))
    generator, tokenizer, batch = WANTED[variant]
    task = run.methods["generator"].loss.__self__
    fields = ("depth", "width", "heads", "bits", "grid", "head_width", "head_blocks", "ffn_hidden")
    for name in fields:
        assert getattr(task.net, name) == getattr(published()[generator], name), name
    for name in ("filters", "multipliers", "blocks", "attention_resolutions", "embedding", "bits"):
        assert getattr(task.tokenizer, name) == getattr(published()[tokenizer], name), name
    plan = run.plan("generator")
    assert plan.batch_size == batch
    assert plan.total == -(-400 * run.config.data.examples // batch)
    assert run.plan("tokenizer").total == 1_000_000
    leaves = jax.tree.leaves(plan.abstract.variables)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    for stage in ("generator", "tokenizer"):
        for share in shares(run, stage, fsdp=8):
            assert 1 / 8 <= share <= 1 / 8 + 0.02


def shares(run, stage, **sizes):
    """Returns what one device of a mesh keeps of the parameters' bytes, and of the optimizer's."""
    shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
    mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * len(shape))
    abstract = run.plan(stage).abstract
    placed = sharding.place(run.boxed(stage), mesh)
    params, optimizer = abstract.variables["params"], abstract.opt_state
    likewise = sharding.place_like(optimizer, params, placed["params"], mesh)
    for tree, places in ((params, placed["params"]), (optimizer, likewise)):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
        sizes = [(leaf.size, math.prod(where.shard_shape(leaf.shape))) for leaf, where in pairs]
        whole, part = map(sum, zip(*sizes, strict=True))
        yield part / whole


def test_gradients_of_a_step_of_its_own_are_not_accumulated(tmp_path):
    changes = {"train.tokenizer.accumulate": "2"}
    with pytest.raises(UserError, match=r"tokenizer\.accumulate=2: this stage takes steps of"):
        Run(config.load("bigr:smoke", changes), str(tmp_path))


@pytest.mark.parametrize(
    ("variant", "steps", "parameters"),
    [("paper", 70_000, 112_086_712), ("paper_bert", 70_000, 109_487_168), ("paper_vit", 6, 92.3e6)],
)
def test_published_hydra_builds(variant, steps, parameters, images, tmp_path):
    np.save(tmp_path / "train.npy", np.zeros((20, 128), np.uint16))
    np.save(tmp_path / "test.npy", np.zeros((20, 128), np.uint16))
    (tmp_path / "tokens.json").write_text('{"vocabulary": 30522}')
    source = f"npz:{images}" if variant == "paper_vit" else f"tokens:{tmp_path}"
    changes = {"data.source": source, "data.examples": "0", "data.num_classes": "0"}
    run = Run(config.load(f"hydra:{variant}", changes), str(tmp_path / "run"))
    plan = run.plan("encoder")
    assert plan.total == steps
    leaves = jax.tree.leaves(plan.abstract.variables)
    assert abs(sum(leaf.size for leaf in leaves) / parameters - 1) < 0.002
    for share in shares(run, "encoder", fsdp=8):
        assert 1 / 8 <= share <= 1 / 8 + 0.02


@pytest.mark.parametrize(
    ("task", "steps", "decay", "classes"),
    [("mnli", 2 * 8182, 0.05, 3), ("stsb", 10 * 180, 0.1, 1)],
)
def test_published_tuning_builds(task, steps, decay, classes, tmp_path):
    settings = config.load(f"hydra:glue_{task}")
    sources = {split: open_or_describe(settings.data, split) for split in ("train", "test")}
    run = Run(settings, str(tmp_path), sources=sources, training=False)
    # Of the small tasks MNLI's stage stands between.
    assert run.needs(task) == ["encoder", "mnli"][: 1 + (task == "stsb")]
    plan = run.plan(task)
    assert abs(plan.total - steps) <= 10
    assert settings.train[task].optimizer.weight_decay == pytest.approx(decay)
    # What hydra:paper has without its head, a square layer with a bias, and the classes.
    leaves = jax.tree.leaves(plan.abstract.variables)
    head = 768 * 768 + 3 * 768 + 30_528
    wanted = 112_086_712 - head + 768 * 769 + 769 * classes
    assert sum(leaf.size for leaf in leaves) == wanted
