"""ELR from its config: the table after a run, what is saved of it, and the published settings."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bigr_jax import config as configs
from bigr_jax.data.order import Order
from bigr_jax.errors import UserError
from bigr_jax.train import sharding
from bigr_jax.train.run import Run

STEPS, BATCH = 4, 32


def trained(workdir, **changes):
    changes = {"train.model.duration": f"{STEPS} steps", **changes}
    run = Run(configs.load("elr:smoke", changes), str(workdir))
    run.train("model")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("elr"), **{"train.model.ema": "0.9"})


def seen(run, repeat=1):
    places = np.arange(STEPS * BATCH) // repeat
    return np.unique(Order(run.config.data.examples, 0).at(places))


def test_targets_of_the_examples_seen_and_no_others_have_begun(run):
    table = np.asarray(run.variables("model")["memory"]["targets"])
    rows = np.zeros(len(table), bool)
    rows[seen(run)] = True
    # Of each (1 - momentum) of a sum of 1.
    np.testing.assert_allclose(table.sum(1), np.where(rows, 0.3, 0), atol=1e-6)
    assert np.all(table[rows] > 0) and table.shape == (1536, 10)


def test_a_checkpoint_holds_them_to_the_bit(run, saved):
    kept = saved(run.workdir, "model")
    (path,) = (name for name in kept if "targets" in name)
    table = np.asarray(run.variables("model")["memory"]["targets"])
    assert kept[path].tobytes() == table.tobytes()
    # The average is one of parameters alone.
    assert run.plan("model").abstract.ema.keys() == {"params"}


def test_examples_in_a_row_move_their_target_once_a_step(tmp_path):
    run = trained(tmp_path, **{"train.model.repeat": "2"})
    table = np.asarray(run.variables("model")["memory"]["targets"])
    rows = np.zeros(len(table), bool)
    rows[seen(run, 2)] = True
    np.testing.assert_allclose(table.sum(1), np.where(rows, 0.3, 0), atol=1e-6)


def test_the_test_split_is_never_noisy(run):
    assert "clean" in run.sources["train"].gather(np.arange(2))
    assert "clean" not in run.sources["test"].gather(np.arange(2))
    found = run.results()["stages"]["model"]["test"]
    assert found.keys() == {"accuracy", "loss"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "few.npz"
    rng = np.random.default_rng(0)
    label = np.arange(40) % 10
    np.savez(path, image=rng.integers(0, 256, (40, 32, 32, 3), np.uint8), label=label)
    return path


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("paper", 21_282_122), ("paper_asym", 21_282_122), ("paper_cifar100", 21_282_122),
     ("paper_plus", 2 * 11_172_170)],
)  # fmt: skip
def test_published_settings_build(variant, parameters, images, tmp_path):
    config = configs.load(f"elr:{variant}", {"data.source": f"npz:{images}"})
    run = Run(config, str(tmp_path / "run"))
    plan = run.plan("model")
    leaves = jax.tree.leaves(plan.abstract.variables["params"])
    assert sum(leaf.size for leaf in leaves) == parameters
    networks = config.method.networks
    assert plan.abstract.variables["memory"]["targets"].shape == (256, 10 * networks)
    shape = (2, 2, 1, 1)
    mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    placed = sharding.place(run.boxed("model"), mesh)
    assert placed["memory"]["targets"].spec == PartitionSpec(("fsdp", "data"), None)


def test_an_unknown_network_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.model\.kind='vgg'"):
        Run(configs.load("elr:smoke", {"model.kind": "vgg"}), str(tmp_path))
