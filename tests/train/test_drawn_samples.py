"""Samples in a file: the same whether drawn at once, gone on with, or over more devices."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.metrics.reference import read_images
from bigr_jax.train import commands
from bigr_jax.train.drawn_samples import DrawnSamples, balanced_labels, checksum
from bigr_jax.train.loop import Interrupted
from bigr_jax.train.run import opened

COUNT, SIZE = 23, 4


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("drawn")
    commands.train(tiny(), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def run(finished):
    return opened(str(finished))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The samples drawn at once: their path, and the batches as they came."""
    path = tmp_path_factory.mktemp("whole") / "a.npz"
    return path, list(DrawnSamples(run, str(path), COUNT, 3, SIZE).batches())


def arrays(path):
    with np.load(path) as found:
        return dict(found)


def test_the_file_is_one_that_other_evaluators_read(run, whole):
    path, batches = whole
    assert [len(images) for images in batches] == [4, 4, 4, 4, 4, 3]
    found = arrays(path)
    np.testing.assert_array_equal(found["arr_0"], np.concatenate(batches))
    assert found["arr_0"].shape == (COUNT, 4, 4, 3) and found["arr_0"].dtype == np.uint8
    # The digits are grey: equal channels, and not one image.
    assert np.ptp(found["arr_0"], axis=3).max() == 0 and np.ptp(found["arr_0"]) > 50
    np.testing.assert_array_equal(found["arr_1"], balanced_labels(COUNT, 10, 3))
    assert os.listdir(path.parent) == ["a.npz"]
    assert json.loads(bytes(found["made_json"]))["samples"] == COUNT
    assert read_images(str(path)).shape == (COUNT, 4, 4, 3)


def test_levels_are_rounded_to_the_nearest(run, tmp_path):
    method = run.methods["second"]
    values = jnp.array([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 1.5])

    def sample(variables, key, labels, given):
        return jnp.broadcast_to(values.reshape(1, 2, 4, 1), (len(labels), 2, 4, 1))

    run.methods["second"] = method._replace(sample=sample)
    try:
        (images,) = DrawnSamples(run, str(tmp_path / "a.npz"), 2, 0, 2).batches()
    finally:
        run.methods["second"] = method
    assert images[1, ..., 0].ravel().tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


def test_what_is_drawn_is_not_drawn_again(run, whole, monkeypatch):
    path, batches = whole
    again = DrawnSamples(run, str(path), COUNT, 3, SIZE)
    monkeypatch.setattr(DrawnSamples, "_program", None)
    for one, other in zip(batches, again.batches(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kept", [1, 4])
def test_a_half_drawn_file_goes_on_where_it_was(run, whole, tmp_path, kept):
    path = tmp_path / "a.npz"
    drawing = DrawnSamples(run, str(path), COUNT, 3, SIZE).batches()
    for _ in range(kept):
        next(drawing)
    drawing.close()
    assert sorted(os.listdir(tmp_path)) == ["a.npz.json", "a.npz.part"]
    assert json.loads((tmp_path / "a.npz.json").read_text())["drawn"] == kept * SIZE
    # What was not yet counted when it was killed is drawn again.
    stored = np.load(tmp_path / "a.npz.part", mmap_mode="r+")
    stored[kept * SIZE :] = 77
    stored.flush()
    batches = list(DrawnSamples(run, str(path), COUNT, 3, SIZE).batches())
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(whole[1]))
    np.testing.assert_array_equal(arrays(path)["arr_0"], arrays(whole[0])["arr_0"])
    assert os.listdir(tmp_path) == ["a.npz"]


def test_all_drawn_but_not_yet_a_npz(run, whole, tmp_path):
    path = tmp_path / "a.npz"
    drawing = DrawnSamples(run, str(path), COUNT, 3, SIZE).batches()
    for _ in range(6):
        next(drawing)
    drawing.close()
    assert json.loads((tmp_path / "a.npz.json").read_text())["drawn"] == COUNT
    assert len(list(DrawnSamples(run, str(path), COUNT, 3, SIZE).batches())) == 6
    np.testing.assert_array_equal(arrays(path)["arr_0"], arrays(whole[0])["arr_0"])


def test_a_signal_stops_between_batches(run, tmp_path):
    path = tmp_path / "a.npz"
    drawing = DrawnSamples(run, str(path), COUNT, 3, SIZE).batches()
    next(drawing)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        next(drawing)
    assert str(caught.value) == (
        "stopped at 4 of 23 images, kept; the same command goes on from there"
    )
    assert caught.value.signum == signal.SIGTERM and (tmp_path / "a.npz.part").exists()


def test_more_devices_draw_the_same(finished, whole, run_python, tmp_path):
    code = (
        "import sys\n"
        "from bigr_jax.train.drawn_samples import DrawnSamples\n"
        "from bigr_jax.train.run import opened\n"
        "run = opened(sys.argv[1])\n"
        "assert run.mesh.size == 4, run.mesh\n"
        f"list(DrawnSamples(run, sys.argv[2], {COUNT}, 3, {SIZE}).batches())\n"
    )
    copied = shutil.copytree(finished, tmp_path / "run")
    done = run_python(["-c", code, str(copied), str(tmp_path / "a.npz")], devices=4)
    assert done.returncode == 0, done.stderr
    assert json.loads(bytes(arrays(tmp_path / "a.npz")["made_json"])) == json.loads(
        bytes(arrays(whole[0])["made_json"])
    )
    np.testing.assert_array_equal(arrays(tmp_path / "a.npz")["arr_0"], arrays(whole[0])["arr_0"])


@pytest.mark.parametrize(
    ("count", "seed", "size", "names"),
    [
        (COUNT, 4, SIZE, "seed"),
        (22, 3, SIZE, "samples"),
        (COUNT, 3, 5, "batch"),
        (2, 4, 1, "batch, samples, seed"),
    ],
)
def test_a_file_of_other_samples_is_refused(run, whole, count, seed, size, names):
    with pytest.raises(UserError, match=f"a.npz holds samples that differ in {names}; give anoth"):
        DrawnSamples(run, str(whole[0]), count, seed, size)


def test_other_settings_and_strange_files_are_refused(finished, run, whole, tmp_path):
    other = opened(str(finished), {"sample.noise": "0.5"})
    with pytest.raises(UserError, match=r"differ in config\.sample\.noise; give another --out"):
        DrawnSamples(other, str(whole[0]), COUNT, 3, SIZE)
    half = str(tmp_path / "half.npz")
    drawing = DrawnSamples(run, half, COUNT, 3, SIZE).batches()
    next(drawing)
    drawing.close()
    with pytest.raises(UserError, match=r"half.npz holds samples that differ in config\.sample"):
        DrawnSamples(other, half, COUNT, 3, SIZE)
    Path(tmp_path, "b.npz").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"b\.npz is there and was not drawn here; give another"):
        DrawnSamples(run, str(tmp_path / "b.npz"), COUNT, 3, SIZE)
    # How it is spread over devices, or logged, does not matter.
    same = opened(str(finished), {"mesh.data": "1", "logging.tensorboard": "true"})
    assert (
        DrawnSamples(same, str(whole[0]), COUNT, 3, SIZE).made
        == DrawnSamples(run, str(whole[0]), COUNT, 3, SIZE).made
    )


@pytest.mark.parametrize(("count", "classes"), [(20, 10), (23, 10), (3, 10), (1000, 7)])
def test_labels_are_balanced_and_mixed(count, classes):
    labels = balanced_labels(count, classes, 0)
    times = np.bincount(labels, minlength=classes)
    assert labels.dtype == np.int32 and len(labels) == count and np.ptp(times) <= 1
    assert not np.array_equal(labels, balanced_labels(count, classes, 1)) or count < 4
    np.testing.assert_array_equal(labels, balanced_labels(count, classes, 0))
    if count == 1000:
        assert abs(np.corrcoef(np.arange(count), labels)[0, 1]) < 0.15


def test_every_bit_of_the_weights_counts():
    tree = {"a": np.float32([1, 2]), "b": (np.int8([3]), jnp.bfloat16([0.5, 2.0]))}
    before = checksum(tree)
    assert checksum(tree) == before
    changed = [
        {**tree, "a": np.nextafter(tree["a"], 3)},
        {**tree, "b": (np.int8([4]), tree["b"][1])},
        {"a": np.float32([3]), "b": (np.array([1.0, 2.0], np.float32).view(np.int8), tree["b"][1])},
    ]
    assert before not in [checksum(other) for other in changed]
