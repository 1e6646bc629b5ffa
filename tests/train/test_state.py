"""The train state of a tiny stage: shapes known beforehand, made where it lives, the same bits."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bigr_jax.data import train_batches
from bigr_jax.train import optimizers
from bigr_jax.train.run import Run
from bigr_jax.train.state import batch_spec, eval_variables, zeros_like_spec


@pytest.fixture
def run(tiny, tmp_path):
    def build(**changes):
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return Run(tiny(named), str(tmp_path))

    return build


def created(run, stage="first"):
    return run.plan(stage).create(run.given(stage))


def same_bits(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def test_the_spec_is_the_batch_that_training_sees(run):
    source = run().sources["train"]
    batch = next(train_batches(source, 6, seed=0))
    spec = batch_spec(source, 6)
    assert {k: (v.shape, v.dtype) for k, v in spec.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }
    zeros = zeros_like_spec(spec)
    assert {k: (v.shape, v.dtype) for k, v in zeros.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }


@pytest.mark.parametrize("name", ["adamw", "schedule_free"])
def test_what_is_made_is_what_was_foretold(run, name):
    made = run(
        train__first__ema="0.9",
        train__first__optimizer__name=name,
        train__first__optimizer__schedule="constant",
    )
    abstract, state = made.plan("first").abstract, created(made)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert int(state.step) == 0
    for told, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (told.shape, told.dtype) == (leaf.shape, leaf.dtype)
        assert leaf.sharding.is_equivalent_to(told.sharding, leaf.ndim)


def test_the_average_starts_as_a_copy_that_can_be_donated_too(run):
    state = created(run(train__first__ema="0.9"))
    params = state.variables["params"]
    assert same_bits(state.ema, {"params": params})
    for kept, leaf in zip(jax.tree.leaves(state.ema), jax.tree.leaves(params), strict=True):
        assert kept.unsafe_buffer_pointer() != leaf.unsafe_buffer_pointer()
    assert created(run()).ema is None


def test_parameters_depend_on_the_seed_alone(run):
    first = created(run())
    assert same_bits(first, created(run()))
    assert same_bits(first, created(run(train__first__batch_size="32")))
    assert not same_bits(first, created(run(seed="1")))


def test_what_is_measured_is_the_average_where_there_is_one(run):
    state = created(run(train__first__ema="0.9"))
    moved = state._replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    found = eval_variables(moved, "adamw")
    assert same_bits(found["params"], moved.ema["params"])
    assert same_bits(found["seen"], state.variables["seen"])
    assert eval_variables(state._replace(ema=None), "adamw") == dict(state.variables)


def test_schedule_free_is_measured_at_its_own_average(run):
    state = created(
        run(
            train__first__optimizer__name="schedule_free",
            train__first__optimizer__schedule="constant",
        )
    )
    y = jax.tree.map(lambda x: x + 0.25, state.variables["params"])
    moved = state._replace(variables={**state.variables, "params": y})
    found = eval_variables(moved, "schedule_free")["params"]
    assert same_bits(found, optimizers.eval_params("schedule_free", state.opt_state, y))
    # z stayed at the start, so that the average x = (y - (1 - b1) z) / b1 is 0.25 / b1 from it.
    away = np.asarray(found["kernel"]) - np.asarray(state.variables["params"]["kernel"])
    np.testing.assert_allclose(away, 0.25 / 0.9, rtol=1e-5)
