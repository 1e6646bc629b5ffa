from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from bigr_jax import registry
from bigr_jax.api import TrainState
from bigr_jax.errors import UserError
from bigr_jax.train import manifest
from bigr_jax.train.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
COMMIT_FILES = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def make_state(step, dtype=jnp.float32):
    rng = np.random.default_rng(step)
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), dtype)}}
    stats = {"mean": jnp.asarray(rng.normal(size=3), jnp.bfloat16)}
    tx = optax.adamw(1e-3)
    return TrainState(
        step=jnp.int32(step),
        variables={"params": params, "batch_stats": stats},
        opt_state=tx.init(params),
        ema=jax.tree.map(lambda x: x * 2, params),
    )


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the steps 10, 20 and 30, to be copied, not changed."""
    directory = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {"examples": step * 8}, {"loss": 1 / step})
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def damage(directory, step, name="state/manifest.ocdbt"):
    path = directory / str(step) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_round_trip_is_bit_exact_and_brings_the_meta_back(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.all_steps() == [10, 20, 30] and checkpoints.latest() == 30
    for step in (None, 10, 20):
        state, meta = checkpoints.restore(abstract(make_state(0)), step)
        assert_equal(state, make_state(step or 30))
        assert meta == {"examples": 8 * (step or 30)}
    checkpoints.close()


def test_nothing_saved_yet(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent", best="loss")
    assert checkpoints.all_steps() == []
    assert checkpoints.latest() is None and checkpoints.best_step() is None
    with pytest.raises(UserError, match="no good checkpoint; finished steps: none"):
        checkpoints.restore(abstract(make_state(0)))
    checkpoints.wait()
    checkpoints.close()
    assert not (tmp_path / "absent").exists()


def test_reading_changes_nothing_on_disk(copied):
    (copied / "40").mkdir()
    (copied / "50.orbax-checkpoint-tmp").mkdir()
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    with Checkpoints(copied, keep=1, best="loss") as checkpoints:
        checkpoints.best_step()
        checkpoints.restore(abstract(make_state(0)))
    assert before == {p: p.stat().st_mtime_ns for p in copied.rglob("*")}


@pytest.mark.parametrize(
    "best, kept, chosen",
    [
        (None, [4, 5], 5),
        ("accuracy", [2, 4, 5], 2),
        ("-accuracy", [1, 4, 5], 1),
        ("absent", [4, 5], 5),
    ],
)
def test_keeps_the_newest_and_the_best(tmp_path, best, kept, chosen):
    state = {"a": jnp.zeros(2)}
    scores = {1: 0.1, 2: 0.9, 3: 0.9, 4: float("nan"), 5: 0.5}
    scores[3] -= 0.1
    with Checkpoints(tmp_path, keep=2, best=best) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state, {}, {"accuracy": score} if step != 4 else {})
        checkpoints.wait()
        assert checkpoints.all_steps() == kept and checkpoints.best_step() == chosen
    again = Checkpoints(tmp_path, keep=2, best=best)
    assert again.best_step() == chosen
    again.save(6, state, {})
    again.close()
    assert again.all_steps() == sorted({*kept[:-2], *kept[-1:], 6})


def test_every_and_force_and_saving_a_step_twice(tmp_path):
    state = {"a": jnp.zeros(2)}
    with Checkpoints(tmp_path, keep=9, every=5) as checkpoints:
        done = [checkpoints.save(step, state, {}) for step in (1, 5, 5, 7, 10)]
        assert done == [False, True, False, False, True]
        assert checkpoints.save(11, state, {}, force=True)
    assert checkpoints.all_steps() == [5, 10, 11]


def test_a_saved_state_may_be_donated_and_overwritten_at_once(tmp_path):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    value = jnp.zeros((512, 512))
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(1, 5):
            value = add(value)
            checkpoints.save(step, {"a": value}, {})
            value = add(add(value)) - 2
        checkpoints.wait()
        for step in range(1, 5):
            found, _ = checkpoints.restore(
                {"a": jax.ShapeDtypeStruct((512, 512), jnp.float32)}, step
            )
            assert np.all(np.asarray(found["a"]) == step)


def test_numpy_scalars_come_back(tmp_path):
    state = {"count": np.int32(7), "list": [np.float32(0.5), np.arange(3)], "none": None}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), state)
        found, _ = checkpoints.restore(shapes)
    assert found["count"] == 7 and found["list"][0] == 0.5 and found["none"] is None


def test_a_typed_key_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="typed key"):
        checkpoints.save(1, {"key": jax.random.key(0)}, {})


def renamed(state):
    kernel = state.variables["params"]["dense"]["kernel"]
    return state._replace(variables={**state.variables, "params": {"Dense": {"kernel": kernel}}})


def with_kernel(shape, dtype):
    def change(state):
        leaf = jax.ShapeDtypeStruct(shape, dtype)
        params = {"dense": {"kernel": leaf}}
        return state._replace(variables={**state.variables, "params": params})

    return change


KERNEL = "variables/params/dense/kernel was saved as float32[4, 3]"


@pytest.mark.parametrize(
    "change, parts",
    [
        (with_kernel((4, 3), jnp.bfloat16), [f"{KERNEL}, wanted bfloat16[4, 3]"]),
        (with_kernel((4, 3), jnp.int32), [f"{KERNEL}, wanted int32[4, 3]"]),
        (with_kernel((3, 4), jnp.float32), [f"{KERNEL}, wanted float32[3, 4]"]),
        (with_kernel((4, 3, 1), jnp.float32), [f"{KERNEL}, wanted float32[4, 3, 1]"]),
        (renamed, ["variables/params/Dense/kernel is not in the checkpoint", f"{KERNEL} and is"]),
        (
            lambda s: s._replace(ema=None),
            ["ema/dense/kernel was saved as float32[4, 3] and is not"],
        ),
        (
            lambda s: s._replace(opt_state=optax.sgd(1.0, 0.9).init(s.ema)),
            ["opt_state/0/trace/dense/kernel is not in the checkpoint", "opt_state/0/mu/dense"],
        ),
    ],
)
def test_another_state_is_refused_by_name(saved, change, parts):
    wanted = change(abstract(make_state(0)))
    with pytest.raises(UserError) as caught:
        Checkpoints(saved).restore(wanted)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_int32_is_never_cast_to_float32(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"n": jnp.int32(16777217)}, {})
        with pytest.raises(UserError, match=r"n was saved as int32\[\], wanted float32\[\]"):
            checkpoints.restore({"n": jax.ShapeDtypeStruct((), jnp.float32)})


def test_a_damaged_step_is_passed_over_with_one_line(copied, caplog):
    damage(copied, 30)
    with Checkpoints(copied) as checkpoints:
        state, meta = checkpoints.restore(abstract(make_state(0)))
    assert_equal(state, make_state(20))
    assert meta == {"examples": 160}
    (record,) = caplog.records
    message = record.getMessage()
    assert str(copied / "30") in message and "state/manifest.ocdbt" in message
    assert record.levelno == logging.WARNING and "\n" not in message


def test_a_step_without_manifest_was_not_finished(copied, caplog):
    (copied / "30" / "manifest.json").unlink()
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.latest() == 20
        assert_equal(checkpoints.restore(abstract(make_state(0)))[0], make_state(20))
    assert "manifest.json is missing" in caplog.text and str(copied / "30") in caplog.text


def test_no_good_step_is_an_error_that_lists_what_is_there(copied, caplog):
    for step in (10, 20, 30):
        damage(copied, step)
    with pytest.raises(UserError, match="no good checkpoint; finished steps: 10, 20, 30"):
        Checkpoints(copied).restore(abstract(make_state(0)))
    assert len(caplog.records) == 3
    with pytest.raises(UserError, match="no good checkpoint of step 20"):
        Checkpoints(copied).restore(abstract(make_state(0)), 20)
    with pytest.raises(UserError, match="no good checkpoint of step 15"):
        Checkpoints(copied).restore(abstract(make_state(0)), 15)


@pytest.mark.parametrize("next_step", [30, 35])
def test_a_damaged_step_is_replaced_by_the_next_save(copied, next_step):
    damage(copied, 30)
    with Checkpoints(copied, keep=2) as checkpoints:
        checkpoints.restore(abstract(make_state(0)))
        checkpoints.save(next_step, make_state(77), {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [20, next_step]
        assert_equal(checkpoints.restore(abstract(make_state(0)))[0], make_state(77))


def test_going_back_removes_the_steps_of_the_abandoned_course(copied):
    with Checkpoints(copied, keep=3) as checkpoints:
        checkpoints.restore(abstract(make_state(0)), 10)
        assert not checkpoints.save(10, make_state(10), {})
        checkpoints.save(15, make_state(15), {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [10, 15]


def test_the_first_save_removes_what_killed_saves_left(copied):
    (copied / "40.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (copied / "35").mkdir()
    (copied / "notes.txt").write_text("the user's own")
    with Checkpoints(copied, keep=9) as checkpoints:
        checkpoints.save(40, make_state(40), {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [10, 20, 30, 40]
    assert sorted(p.name for p in copied.iterdir()) == ["10", "20", "30", "40", "notes.txt"]


def test_fuzz_no_damage_goes_unseen(saved, tmp_path):
    corrupt = registry.run_file(ROOT / "scripts" / "corrupt.py")
    wanted, count = abstract(make_state(0)), 8 * len(corrupt.MUTATIONS)
    found = list(corrupt.tried(saved, wanted, count, 0, tmp_path))
    assert [(m, outcome) for m, outcome in found if outcome.startswith("wrong")] == []
    detected = {mutation.kind for mutation, outcome in found if outcome == "detected"}
    assert detected == set(corrupt.MUTATIONS)
    for mutation, outcome in found:
        # What orbax writes after the manifest is read by nobody; any other step is not the newest.
        assert outcome == "detected" or mutation.what in COMMIT_FILES or 30 not in mutation.steps


def test_what_orbax_writes_at_the_end_is_needed_by_nobody(copied):
    for name in COMMIT_FILES:
        (copied / "30" / name).unlink(missing_ok=True)
    with Checkpoints(copied, keep=3) as checkpoints:
        state, meta = checkpoints.restore(abstract(make_state(0)))
        assert_equal(state, make_state(30))
        assert meta == {"examples": 240}
        checkpoints.save(31, make_state(31), {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [20, 30, 31]


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_one_step_and_a_warning(copied, monkeypatch, caplog, capfd):
    with Checkpoints(copied, keep=2) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write", full_disk)
            checkpoints.save(40, make_state(40), {})
            with contextlib.suppress(UserError):
                checkpoints.wait()
            checkpoints.save(50, make_state(50), {})
            checkpoints.settle()
        assert checkpoints.all_steps() == [10, 20, 30]
        checkpoints.save(60, make_state(60), {})
        checkpoints.wait()
        assert checkpoints.all_steps() == [30, 60]
    (record,) = caplog.records
    assert "No space left" in record.getMessage() and "50" in record.getMessage()
    assert "Traceback" not in capfd.readouterr().err


def test_the_last_save_failing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "write", full_disk)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {})
    with pytest.raises(UserError, match=r"could not be written.*No space left"):
        checkpoints.close()
    checkpoints.close()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    checkpoints.save(1, make_state(1), {})
    with pytest.raises(UserError, match="could not be written"):
        checkpoints.close()


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def run(script, *args, env=None, check=True):
    code = textwrap.dedent(script)
    command = [sys.executable, "-W", "ignore:.*fork", "-c", code, *map(str, args)]
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, **(env or {})}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=check
    )


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from bigr_jax.train.checkpoints import Checkpoints

def template(count):
    mesh = jax.make_mesh((count,), ("d",), devices=jax.devices()[:count])
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(16, 3)).astype(np.float32), "b": rng.normal(size=(8,)),
              "c": np.float32(rng.normal()), "d": rng.integers(0, 99, (3, 5)).astype(np.int32)}
    values["b"] = values["b"].astype(jnp.bfloat16)
    specs = {"a": P("d"), "b": P("d"), "c": P(), "d": P()}
    place = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    return values, place

with Checkpoints(sys.argv[1]) as checkpoints:
    values, place = template(8)
    checkpoints.save(1, jax.tree.map(jax.device_put, values, place), {"n": 8})
    for count in (8, 1, 2):
        values, place = template(count)
        wanted = jax.tree.map(
            lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s), values, place)
        state, meta = checkpoints.restore(wanted)
        for name in values:
            assert np.asarray(state[name]).tobytes() == values[name].tobytes(), name
            assert state[name].sharding == place[name] and meta == {"n": 8}
print("good", len(jax.devices()))
"""


def test_saved_on_eight_devices_restored_on_one_and_two_without_a_word(tmp_path):
    done = run(SHARDED, tmp_path, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
    assert done.stdout == "good 8\n"
    assert done.stderr == ""


KILLED = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from bigr_jax.train.checkpoints import Checkpoints

directory, kills = sys.argv[1], int(sys.argv[2])

def state(step):
    values = np.random.default_rng(step).normal(size=(64, 32))
    return {"a": jnp.asarray(values, jnp.float32), "step": jnp.int32(step)}

def train(pipe):
    checkpoints, step = Checkpoints(directory, keep=2), 0
    if checkpoints.latest() is not None:
        found, meta = checkpoints.restore(jax.eval_shape(lambda: state(0)))
        step = checkpoints.latest()
        assert found["step"] == step and meta == {"step": step}
        np.testing.assert_array_equal(found["a"], state(step)["a"])
    os.write(pipe, b"%d\\n" % step)
    while True:
        step += 1
        checkpoints.save(step, state(step), {"step": step})
        if step % 4 == 1:
            checkpoints.wait()
            os.write(pipe, b"%d\\n" % step)

rng, reached = random.Random(0), 0
for _ in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            train(write)
        finally:
            os._exit(1)
    os.close(write)
    lines = b""
    while lines.count(b"\\n") < 2:
        got = os.read(read, 100)
        assert got, "a restored step was not good"
        lines += got
    time.sleep(rng.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while got := os.read(read, 100):
        lines += got
    said = [int(line) for line in lines.split()]
    # What was said to be on disk when the last child died is what this one went on from, or later.
    assert said[0] >= reached, (said, reached)
    reached = said[-1]
print("reached", reached)
"""


def test_kill_at_random_instants_never_loses_a_step_that_was_waited_for(tmp_path):
    # One process forks all children before it starts any thread: importing jax once saves seconds.
    done = run(KILLED, tmp_path, 10, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= 10


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
port, index, directory = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from jax.sharding import NamedSharding, PartitionSpec as P
from bigr_jax.train.checkpoints import Checkpoints

mesh = jax.make_mesh((2,), ("d",))
place = NamedSharding(mesh, P("d"))
values = np.arange(8, dtype=np.float32).reshape(4, 2)
array = lambda v: jax.make_array_from_callback(v.shape, place, lambda i: v[i])
with Checkpoints(directory, keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": array(values + step)}, {"step": step})
    checkpoints.wait()
    jax.experimental.multihost_utils.sync_global_devices("saved")
    assert checkpoints.all_steps() == [2, 3]
    if index == "0":
        open(f"{directory}/3/state/manifest.ocdbt", "ab").write(b"x")
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    wanted = {"a": jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=place)}
    state, meta = checkpoints.restore(wanted)
    assert meta == {"step": 2}
    for shard in state["a"].addressable_shards:
        np.testing.assert_array_equal(shard.data, (values + 2)[shard.index])
    checkpoints.save(3, {"a": array(values + 7)}, {"step": 7})
    checkpoints.wait()
    assert checkpoints.restore(wanted)[1] == {"step": 7}
"""


def test_two_processes_save_and_agree_on_the_step_to_restore(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(index), str(tmp_path)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    assert errors[0].count("damaged") == 1 and "damaged" not in errors[1]


def test_the_manifest_lists_every_file_of_the_items(saved):
    record = json.loads((saved / "30" / "manifest.json").read_text())["content"]
    files = {str(p.relative_to(saved / "30")) for p in (saved / "30").rglob("*") if p.is_file()}
    assert set(record["files"]) == files - COMMIT_FILES - {"manifest.json"}
    assert record["leaves"]["variables/params/dense/kernel"] == [[4, 3], "float32"]
    assert record["leaves"]["variables/batch_stats/mean"] == [[3], ml_dtypes.bfloat16.dtype.name]
