"""Rows of a table with an entry per example: written in place, kept where a step is not finite,
seen by the next micro-batch, and in equal parts on a mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bigr_jax.api import Aux, Method, Rows, TrainState
from bigr_jax.train import sharding
from bigr_jax.train.step import make_step, replaced, step_before

LR, COUNT, WIDTH = 0.1, 10, 3


def method(whole=False):
    """Half of what is in a row, and the image, go into the row; the image weighs on the loss."""

    def loss(variables, key, batch, given):
        table, places = variables["memory"]["targets"], batch["index"]
        rows = 0.5 * table[places] + batch["x"]
        value = jnp.mean(batch["x"] * variables["params"]["w"])
        new = table.at[places].set(rows) if whole else Rows(places, rows)
        return value, Aux({}, {"memory": {"targets": new}})

    return Method(None, loss, None)


def fresh(count=COUNT):
    params = {"w": jnp.ones(WIDTH)}
    table = jnp.arange(count * WIDTH, dtype=jnp.float32).reshape(count, WIDTH)
    variables = {"params": params, "memory": {"targets": table, "name": jnp.int32(7)}}
    return TrainState(jnp.int32(0), variables, optax.sgd(LR).init(params), None)


def batch(*places, bad=False):
    x = np.random.default_rng(0).normal(size=(len(places), WIDTH)).astype("f4")
    x[0, 0] = np.nan if bad else x[0, 0]
    return {"index": jnp.array(places, jnp.int32), "x": jnp.asarray(x)}


def stepped(state, rows, **options):
    step = make_step(method(), optax.sgd(LR), lambda step: LR, **options)
    return jax.jit(step)(state, rows, jax.random.key(0), {})


def table(state):
    return np.asarray(state.variables["memory"]["targets"])


def only_targets(state):
    kept = {"targets": state.variables["memory"]["targets"]}
    return state._replace(variables={**state.variables, "memory": kept})


def test_only_the_rows_of_the_batch_change():
    before, rows = only_targets(fresh()), batch(7, 2)
    after, _ = stepped(before, rows)
    wanted = table(before).copy()
    wanted[[7, 2]] = 0.5 * wanted[[7, 2]] + np.asarray(rows["x"])
    np.testing.assert_array_equal(table(after), wanted)
    whole = make_step(method(whole=True), optax.sgd(LR), lambda step: LR)
    other, _ = jax.jit(whole)(before, rows, jax.random.key(0), {})
    jax.tree.map(np.testing.assert_array_equal, after, other)


def test_collections_are_replaced_whole_or_by_rows():
    variables = fresh().variables
    found = replaced(variables, {"memory": {"targets": Rows(jnp.array([1]), jnp.ones((1, 3)))}})
    assert found["params"] is variables["params"] and found["memory"].keys() == {"targets"}
    np.testing.assert_array_equal(found["memory"]["targets"][1], np.ones(3))
    assert replaced(variables, {"memory": {"a": 1}, "new": {}})["new"] == {}


@pytest.mark.parametrize("skip", [False, True])
def test_a_step_that_is_not_finite_leaves_the_table(skip):
    before = only_targets(fresh())
    after, metrics = stepped(before, batch(7, 2, bad=True), skip=skip)
    assert not metrics["finite"]
    np.testing.assert_array_equal(table(after), table(before))
    assert int(after.step) == (1 if skip else -1)
    back = after if skip else step_before(after, 1)
    good, _ = stepped(back, batch(7, 2))
    assert np.any(table(good) != table(before)) and int(good.step) == (2 if skip else 1)


def test_a_row_that_is_not_finite_stops_the_step_too():
    rows = batch(4)
    before = only_targets(fresh())
    bad = before.variables["memory"]["targets"].at[4].set(jnp.inf)
    before.variables["memory"]["targets"] = bad
    assert not stepped(before, rows)[1]["finite"]
    # What the batch does not touch is not looked through.
    assert stepped(before, batch(5))[1]["finite"]


def test_a_micro_batch_sees_what_the_one_before_wrote():
    before, rows = only_targets(fresh()), batch(3, 3, 1, 5)
    after, _ = stepped(before, rows, accumulate=2)
    wanted, x = table(before).copy(), np.asarray(rows["x"])
    # Rows 0 and 2 go first, then 1 and 3.
    for row in (0, 2, 1, 3):
        place = int(rows["index"][row])
        wanted[place] = 0.5 * wanted[place] + x[row]
    np.testing.assert_allclose(table(after), wanted, rtol=1e-6)


def test_methods_with_steps_of_their_own_write_rows_as_well():
    def step(state, key, batch, given, apply):
        new = {"memory": {"targets": Rows(batch["index"], batch["x"])}}
        return apply(state, jax.tree.map(jnp.zeros_like, state.variables["params"]), new)

    own = make_step(Method(None, None, None, step=step), optax.sgd(LR), lambda step: LR)
    rows, before = batch(6), only_targets(fresh())
    after, _ = jax.jit(own)(before, rows, jax.random.key(0), {})
    np.testing.assert_array_equal(table(after)[6], rows["x"][0])
    np.testing.assert_array_equal(np.delete(table(after), 6, 0), np.delete(table(before), 6, 0))


def test_a_large_table_is_neither_copied_nor_read_whole():
    state = jax.eval_shape(lambda: only_targets(fresh(1 << 20)))
    size = 4 * WIDTH << 20
    rows = jax.eval_shape(lambda: batch(1, 2))
    key = jax.eval_shape(lambda: jax.random.key(0))
    for whole, copied in ((False, False), (True, True)):
        step = make_step(method(whole), optax.sgd(LR), lambda step: LR)
        program = jax.jit(step, donate_argnums=0).lower(state, rows, key, {}).compile()
        stats = program.memory_analysis()
        assert stats.alias_size_in_bytes >= size
        assert (stats.temp_size_in_bytes > size // 2) is copied


@pytest.mark.parametrize(
    ("sizes", "rows", "wanted"),
    [
        ({}, 512, None),
        ({"data": 2}, 512, "data"),
        ({"fsdp": 4}, 512, "fsdp"),
        ({"data": 2, "fsdp": 4, "model": 2}, 512, ("fsdp", "data")),
        # As many axes as divide the rows; the columns then.
        ({"data": 4, "fsdp": 2}, 6, "fsdp"),
        ({"data": 2, "fsdp": 4}, 6, None),
        ({"data": 4}, 6, None),
    ],
)
def test_a_table_lies_in_parts_over_data_and_fsdp(sizes, rows, wanted):
    shape = tuple(sizes.get(name, 1) for name in sharding.AXES)
    mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    leaf = jax.ShapeDtypeStruct((rows, 4), jnp.float32)
    boxed = {"targets": nn.LogicallyPartitioned(leaf, ("examples", None))}
    second = "fsdp" if sizes.get("fsdp") and wanted is None else None
    assert sharding.place(boxed, mesh)["targets"].spec == PartitionSpec(wanted, second)
