from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bigr_jax.data.absent import open_or_describe
from bigr_jax.data.described import Described, spec
from bigr_jax.errors import UserError


def section(source: str, **changes: Any) -> Any:
    settings = dict(size=8, channels=0, num_classes=0, examples=0, data_dir="/nowhere")
    return SimpleNamespace(source=source, **{**settings, **changes})


def test_data_that_are_here_are_opened() -> None:
    found = open_or_describe(section("digits"), "train")
    assert not isinstance(found, Described)
    assert len(found) == 1438


@pytest.mark.parametrize(("split", "examples"), [("train", 1_281_167), ("test", 50_000)])
def test_imagenet_is_known_without_its_files(split: str, examples: int) -> None:
    found = open_or_describe(section("tfds:imagenet2012", size=256), split)
    assert len(found) == examples
    assert found.info.num_classes == len(found.info.class_names) == 1000
    assert spec(found) == {
        "image": ((256, 256, 3), np.dtype(np.uint8)),
        "label": ((), np.dtype(np.int32)),
    }
    with pytest.raises(UserError, match="imagenet2012 is not prepared"):
        found.gather(np.arange(1))


def test_another_set_is_as_the_config_says() -> None:
    said = dict(channels=1, num_classes=7, examples=500)
    found = open_or_describe(section("folder:/nowhere/images", **said), "train")
    assert (len(found), found.info.num_classes, found.info.image_shape) == (500, 7, (8, 8, 1))


def test_what_the_config_does_not_say_is_named() -> None:
    with pytest.raises(UserError) as caught:
        open_or_describe(section("folder:/nowhere/images", channels=3), "train")
    text = str(caught.value)
    assert "/nowhere/images" in text
    assert text.endswith("--config.data.num_classes=... --config.data.examples=...")


@pytest.mark.parametrize("source", ["captioned:/nowhere.npz", "digitz", "codes:/nowhere"])
def test_what_only_files_tell_and_mistakes_are_refused(source: str) -> None:
    with pytest.raises(UserError) as caught:
        open_or_describe(section(source, channels=3, num_classes=2, examples=9), "train")
    assert "--config.data" not in str(caught.value)
