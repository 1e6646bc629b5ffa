"""Sets that tensorflow-datasets prepared, read without TensorFlow and without a network."""

from __future__ import annotations

import io
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data import ArraySource, LazySource, Source, open_source, train_batches
from bigr_jax.errors import UserError

tfds: Any = pytest.importorskip(
    "tensorflow_datasets", reason="tensorflow-datasets is not installed"
)

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    stream.seek(0)
    return stream


class BigrTinyColour(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Colour images under their own names, in splits train and validation."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("picture", "kind"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0), "validation": self._generate_examples(20)}

    def _generate_examples(self, start: int = 0) -> Any:
        for index in range(start, 20 if start == 0 else 30):
            yield index, {"picture": png(IMAGES[index]), "kind": index % 3}


class BigrTinyGrey(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Grey tensors without a held-out split and without supervised keys."""

    VERSION = tfds.core.Version("2.10.0")

    def _info(self) -> Any:
        tensor = tfds.features.Tensor(
            shape=(6, 6, 1), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
        )
        features = {"image": tensor, "label": tfds.features.ClassLabel(num_classes=4)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for index in range(30):
            yield index, {"image": IMAGES[index, ..., :1], "label": index % 4}


class BigrTinyText(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """No images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict({"word": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        yield 0, {"word": "cat"}


def jpeg(index: int) -> bytes:
    """A photograph of one grey level and a size of its own; the first is CMYK, the next grey."""
    stream = io.BytesIO()
    size, modes = (40 + 7 * index, 33 + 5 * (index % 4)), ("CMYK", "L")
    image = Image.new("RGB", size, (10 * index,) * 3)
    image.convert((*modes, "RGB")[min(index, 2)]).save(stream, "JPEG", quality=95)
    return stream.getvalue()


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The features and splits of ImageNet, whose test split has no labels; two images are cut."""

    VERSION = tfds.core.Version("5.1.0")
    FEATURES = ("image", "label", "file_name")

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "test": self._generate_examples(range(2), False),
            "train": self._generate_examples(range(12)),
            "validation": self._generate_examples(range(12, 17)),
        }

    def _generate_examples(self, indices: range, labelled: bool = True) -> Any:
        for index in indices:
            content = jpeg(index)
            if index in (4, 13):
                content = content[: len(content) // 2]
            label = 50 * index if labelled else -1
            name = f"n{index:08}.JPEG"
            yield name, {"image": io.BytesIO(content), "label": label, "file_name": name}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    for builder in (BigrTinyColour, BigrTinyGrey, BigrTinyText, Imagenet2012):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def opened(name: str, data_dir: Path | str, split: str = "train", **more: int) -> Any:
    section = {"source": f"tfds:{name}", "size": 6, "channels": 3, "data_dir": str(data_dir)}
    return open_source({**section, **more}, split)


def by_label(source: Source) -> set[tuple[bytes, int]]:
    batch = source.gather(np.arange(len(source)))
    return {(image.tobytes(), int(label)) for image, label in zip(*batch.values(), strict=True)}


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_images_and_labels_are_those_prepared(prepared: Path, limit: int) -> None:
    source = opened("bigr_tiny_colour", prepared, ram_limit=limit)
    assert isinstance(source, ArraySource if limit else LazySource)
    assert (source.info.name, source.info.num_classes) == ("bigr_tiny_colour/1.0.0", 3)
    assert source.info.class_names == ("cat", "dog", "owl")
    assert by_label(source) == {(IMAGES[index].tobytes(), index % 3) for index in range(20)}
    held = opened("bigr_tiny_colour", prepared, "test", ram_limit=limit)
    assert by_label(held) == {(IMAGES[index].tobytes(), index % 3) for index in range(20, 30)}
    assert "tensorflow" not in sys.modules


def test_lazy_batches_equal_stored_ones(prepared: Path) -> None:
    sources = [opened("bigr_tiny_colour", prepared, ram_limit=limit) for limit in (0, 1 << 30)]
    pair = [train_batches(source, 8, seed=1, threads=2) for source in sources]
    for _ in range(6):
        one, other = (next(batches) for batches in pair)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    for batches in pair:
        batches.close()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_imagenet_is_cropped_and_its_cut_images_are_replaced(
    prepared: Path, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    train, held = (
        opened("imagenet2012", prepared, split, size=16, ram_limit=limit)
        for split in ("train", "test")
    )
    assert isinstance(train, ArraySource if limit else LazySource)
    assert train.info.num_classes == len(train.info.class_names) == 1000
    assert (len(train), len(held), train.info.image_shape) == (12, 5, (16, 16, 3))
    for source, wanted, cut in ((train, range(12), {4}), (held, range(12, 17), {13})):
        batch = source.gather(np.arange(len(source)))
        labels = (batch["label"] // 50).tolist()
        # Which record follows which is for tensorflow-datasets to say.
        assert set(labels) == set(wanted) - cut
        assert len(labels) == len(wanted)
        for image, label in zip(batch["image"], labels, strict=True):
            assert abs(image.astype(int) - 10 * label).max() <= 2
        assert source.corrupt == 1
    assert caplog.text.count(f"of train in {prepared}/imagenet2012/5.1.0 cannot be read") == 1
    assert caplog.text.count(f"of validation in {prepared}/imagenet2012/5.1.0 cannot be") == 1
    batches = train_batches(train, 8, seed=0, threads=3)
    assert next(batches)["image"].shape == (8, 16, 16, 3)
    batches.close()
    assert "tensorflow" not in sys.modules


def test_the_values_are_those_of_pillow_whatever_else_is_installed(prepared: Path) -> None:
    from bigr_jax.data.image import square

    source = opened("imagenet2012", prepared, size=16, ram_limit=0)
    batch = source.gather(np.arange(12))
    for image, label in zip(batch["image"], batch["label"] // 50, strict=True):
        with Image.open(io.BytesIO(jpeg(int(label)))) as whole:
            np.testing.assert_array_equal(image, square(whole, 16, 3))


def test_without_a_held_out_split_the_last_tenth_is_it(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    parts = [opened("bigr_tiny_grey:2.10.0", "", split, channels=1) for split in ("train", "test")]
    assert [len(part) for part in parts] == [27, 3]
    everything = {(IMAGES[index, ..., :1].tobytes(), index % 4) for index in range(30)}
    assert by_label(parts[0]) | by_label(parts[1]) == everything
    assert opened("bigr_tiny_grey", "", channels=0).info.image_shape == (6, 6, 1)
    assert opened("bigr_tiny_colour", "", channels=0).info.image_shape == (6, 6, 3)


def test_the_newest_version_and_a_config_are_found(prepared: Path, tmp_path: Path) -> None:
    for place in ("many/2.9.0", "many/2.10.0", "deep/plain/2.10.0"):
        shutil.copytree(prepared / "bigr_tiny_grey" / "2.10.0", tmp_path / place)
    (tmp_path / "many" / "2.9.0" / "dataset_info.json").unlink()
    assert len(opened("many", tmp_path)) == 27
    assert len(opened("deep/plain", tmp_path)) == 27
    with pytest.raises(UserError, match=r"has configs, name one: tfds:deep/plain \(of plain\)"):
        opened("deep", tmp_path)
    with pytest.raises(UserError, match=r"many has version 2\.10\.0, 2\.9\.0"):
        opened("many:7.0.0", tmp_path)
    with pytest.raises(UserError, match=r"2\.9\.0 is not readable: .*; prepare it once"):
        opened("many:2.9.0", tmp_path)


def test_a_set_that_is_not_prepared_is_answered_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened("mnist", tmp_path)
    text = str(caught.value)
    assert f"{tmp_path / 'mnist'} is not prepared; prepare it once" in text
    assert f"tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record')" in text


def test_another_file_format_is_named(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "grey" / "2.10.0"
    shutil.copytree(prepared / "bigr_tiny_grey" / "2.10.0", place)
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"\['tfrecord'\].*; prepare it once"):
        opened("grey", tmp_path)


def test_other_features_and_splits_are_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has features word; expected image .* and label"):
        opened("bigr_tiny_text", prepared)
    place = tmp_path / "grey" / "2.10.0"
    shutil.copytree(prepared / "bigr_tiny_grey" / "2.10.0", place)
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace('"train"', '"all"'))
    with pytest.raises(UserError, match="has splits all, no train"):
        opened("grey", tmp_path)


def test_a_missing_package_is_answered_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets array_record importlib_"):
        opened("mnist", "")
