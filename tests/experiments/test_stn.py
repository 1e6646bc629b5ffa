"""STN from its config: what is held out reaches the step, a work directory and a plan without data,
and the published setting.
"""

import os

import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax.data.absent import open_or_describe
from bigr_jax.data.described import Described
from bigr_jax.errors import UserError
from bigr_jax.train import checks, planning, workdir
from bigr_jax.train.run import Run


def run(where, variant="smoke", training=True, sources=None, **changes):
    config = configs.load(f"stn:{variant}", changes)
    return Run(config, str(where), training=training, sources=sources)


def test_a_batch_has_rows_of_both_parts_of_any_size(tmp_path):
    found = run(tmp_path, **{"data.held_out": "500:200"})
    assert {name: len(source) for name, source in found.sources.items()} == {
        "train": 200, "test": 359, "held": 500,
    }  # fmt: skip
    assert found.config.data.examples == 200
    for size, rows in ((None, (32, 16)), (8, (8, 4))):
        shapes = found.batch_spec("model", size)
        assert (shapes["image"].shape[0], shapes["held_image"].shape[0]) == rows
        assert shapes["held_image"].shape[1:] == (8, 8, 1) and "held_label" in shapes
    planned = planning.batch_shapes(found, "model", 64)
    assert planned["held_index"].shape == (32,) and planned["index"].shape == (64,)


def test_a_work_directory_knows_them_without_the_data(tmp_path):
    first = run(tmp_path)
    workdir.write_data(str(tmp_path), first.sources)
    sources = workdir.read_data(str(tmp_path), first.config.data)
    assert all(isinstance(source, Described) for source in sources.values())
    again = run(tmp_path, training=False, sources=sources)
    assert again.batch_spec("model") == first.batch_spec("model")
    rows = np.arange(7)
    for split in ("train", "held"):
        one, other = (found.sources[split].gather(rows)["image"] for found in (first, again))
        np.testing.assert_array_equal(one, other)


def test_the_published_setting_is_planned_without_the_data():
    config = configs.load("stn:paper", {"model.hidden": "64", "model.channels": "(8,8,8,8,8)"})
    sources = {split: open_or_describe(config.data, split) for split in ("train", "test")}
    found = Run(config, os.devnull, sources=sources, training=False)
    shapes = found.batch_spec("model")
    assert shapes["image"].shape == (256, 32, 32, 3)
    assert shapes["held_image"].shape == (128, 32, 32, 3)
    params = found.plan("model").abstract.variables["params"]
    assert params["hyper"]["center"].shape == (15,)
    assert params["weights"]["conv1"]["gates"].shape == (15, 2, 8)
    assert len(found.sources["train"]) == 40_000


def test_a_known_set_is_divided_without_its_data():
    section = configs.load("stn:paper", {"data.source": "tfds:imagenet2012"}).data
    train, test = (open_or_describe(section, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1_281_167 - 256_233, 50_000)
    assert train.held is not None and test.held is None


def test_sizes_that_do_not_fit_are_named(tmp_path):
    found = run(tmp_path)
    section, method = found.config.train.model, found.methods["model"]
    checks.check_sizes("train.model", section, method, 16, 2)
    with pytest.raises(UserError, match=r"batch_size=32 must be a multiple .* data.held_every = 2"):
        checks.check_sizes("train.model", section, method, 32, 2)
    with pytest.raises(UserError, match="holds nothing out"):
        run(tmp_path, **{"data.held_out": "0:700"})
    with pytest.raises(UserError, match="legal: 'HELD' or 'HELD:TRAIN'"):
        run(tmp_path, **{"data.held_out": "half"})
    with pytest.raises(UserError, match="legal: mlp"):
        run(tmp_path, **{"model.kind": "lstm"})


def test_a_schedule_counts_steps_of_the_trainer(tmp_path):
    changes = {"train.model.optimizer.schedule": "steps:0.1:8 steps", "method.warmup": "0 steps"}
    found = run(tmp_path, **{**changes, "train.model.duration": "12 steps"})
    section = found.config.train.model.optimizer
    params = found.boxed("model")["params"]
    resolve = {"0%": 0, "8 steps": 8}
    _, schedule = found.methods["model"].optimizer(section, 12, params, lambda t, k: resolve[t], "")
    rates = [float(schedule(step)) for step in (0, 7, 9, 11)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01], rtol=1e-6)
