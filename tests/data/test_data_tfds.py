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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    for builder in (BigrTinyColour, BigrTinyGrey, BigrTinyText):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def opened(name: str, data_dir: Path | str, split: str = "train", **more: int) -> Source:
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
