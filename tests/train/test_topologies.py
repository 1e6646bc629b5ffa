from __future__ import annotations

import os
import re

import jax
import pytest

from bigr_jax.errors import UserError
from bigr_jax.train import sharding, topologies


@pytest.mark.parametrize(
    "name", ["v5e:3x3", "v5e", "v7:2x2", "v5p:2x2", "v5p:4x4x5", "v5p:0x4x4", "0[*]v5e:2x4"]
)
def test_a_slice_that_cannot_be_had_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--topology={name} is no TPU slice; legal: v5e or v6e"):
        topologies.tpu_slice(name.replace("[*]", "*"))


def test_without_the_compiler_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        topologies.tpu_slice("v5e:2x4")
    found = re.search(r"pip install '(.*)'$", str(caught.value))
    assert found is not None
    assert found[1] == topologies.compiler()
    assert found[1].startswith("libtpu==0.0.")


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5p:4x4x8", 128, "TPU v5"),
        ("v6e:16x16", 256, "TPU v6 lite"),
    ],
)
def test_devices_of_a_slice(name: str, count: int, kind: str) -> None:
    pytest.importorskip("libtpu")
    devices = topologies.tpu_slice(name)
    assert {device.device_kind for device in devices} == {kind}
    assert len(devices) == count


def test_only_the_data_axis_crosses_slices() -> None:
    pytest.importorskip("libtpu")
    devices = topologies.tpu_slice("2*v5e:2x4")
    mesh = sharding.make_mesh({"data": -1, "fsdp": 4}, devices)
    slices = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert slices == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    with pytest.raises(UserError, match="mesh data=1 does not divide over 2 slices"):
        sharding.make_mesh({"fsdp": 16}, devices)


def test_the_compiler_looks_for_no_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    topologies.prepare_compiler()
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"


def test_mesh_of_a_flag() -> None:
    assert topologies.mesh_sizes("data=-1, fsdp=4") == {"data": -1, "fsdp": 4}


@pytest.mark.parametrize("text", ["data", "data=0", "data=2,data=2", "rows=2", "fsdp=x", ""])
def test_mesh_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="is not AXIS=SIZE"):
        topologies.mesh_sizes(text)


def test_simulated_devices() -> None:
    assert topologies.simulated({"data": 1}) == jax.devices("cpu")[:1]
    with pytest.raises(UserError, match="--mesh wants 4096 devices"):
        topologies.simulated({"data": 64, "fsdp": 64})
    with pytest.raises(UserError, match="wants a --topology"):
        topologies.simulated({"data": -1})
