"""Placement of parameters: the table, the fallbacks, the errors; on meshes without devices of their
own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bigr_jax.errors import UserError
from bigr_jax.train import sharding


def mesh(**sizes):
    shape = tuple(sizes.get(name, 1) for name in sharding.AXES)
    return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 4)


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def specs(variables, where, overrides=()):
    return jax.tree.map(lambda s: s.spec, sharding.place(variables, where, overrides))


def test_names_go_to_their_axes_and_unnamed_leaves_to_fsdp():
    variables = {
        "params": {
            "kernel": boxed((64, 128), "embed", "mlp"),
            "bias": boxed((128,), "mlp"),
            "plain": jax.ShapeDtypeStruct((3, 24, 8), jnp.float32),
        }
    }
    found = specs(variables, mesh(fsdp=4, model=2))["params"]
    assert found["kernel"] == PartitionSpec("fsdp", "model")
    assert found["bias"] == PartitionSpec("model")
    assert found["plain"] == PartitionSpec(None, "fsdp", None)


def test_one_device_replicates_everything():
    found = specs({"params": {"kernel": boxed((64, 128), "embed", "mlp")}}, mesh())
    assert found["params"]["kernel"] == PartitionSpec(None, None)


def test_a_dimension_that_does_not_divide_falls_back_to_another():
    found = specs({"kernel": boxed((6, 128), "embed", None)}, mesh(fsdp=4))
    assert found["kernel"] == PartitionSpec(None, "fsdp")


def test_one_axis_is_used_once():
    found = specs({"kernel": boxed((64, 64), "embed", "embed")}, mesh(fsdp=2))
    assert found["kernel"] == PartitionSpec("fsdp", None)


def test_overrides_win_and_must_match():
    variables = {"a": {"kernel": boxed((64, 128), "embed", "mlp")}}
    found = specs(variables, mesh(fsdp=2, model=2), (("a/ker", ("model", None)),))
    assert found["a"]["kernel"] == PartitionSpec("model", None)
    with pytest.raises(UserError, match="'b/' matches no parameter"):
        specs(variables, mesh(fsdp=2), (("b/", ("model", None)),))
    with pytest.raises(UserError, match="does not divide 64"):
        specs(variables, mesh(fsdp=3), (("a/", ("fsdp", None)),))


def test_too_many_replicated_bytes_are_refused_by_name():
    variables = {"odd": boxed((701, 901), None, None), "even": boxed((4096, 800), "embed", None)}
    with pytest.raises(UserError, match=r"^16\.2% .*whole on every device.*: odd$"):
        sharding.place(variables, mesh(fsdp=4))
    sharding.place({**variables, "even": boxed((40960, 800), "embed", None)}, mesh(fsdp=4))


def test_what_is_small_may_be_replicated():
    variables = {"odd": boxed((7, 9), None, None), "even": boxed((8, 8), "embed", None)}
    assert specs(variables, mesh(fsdp=4))["odd"] == PartitionSpec(None, None)


def test_optimizer_state_lies_where_its_parameter_lies():
    params = {"dense": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    where = mesh(fsdp=2)
    placed = sharding.place(params, where)
    opt_state = ({"count": jax.ShapeDtypeStruct((), jnp.int32)}, {"mu": params, "nu": params})
    found = sharding.place_like(opt_state, params, placed, where)
    assert found[1]["mu"]["dense"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert found[0]["count"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"data": 3}, "must multiply to 1"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "positive"),
        ({"dta": 1}, "did you mean 'data'"),
    ],
)
def test_mesh_mistakes_are_named(sizes, text):
    with pytest.raises(UserError, match=text):
        sharding.make_mesh(sizes, jax.devices()[:1])


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(sharding.make_mesh({"data": -1}, jax.devices()[:1]).shape) == {
        "data": 1, "fsdp": 1, "model": 1, "seq": 1,
    }  # fmt: skip
