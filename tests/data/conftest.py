"""Small sets on disk for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data.source import ArraySource, Info, LazySource


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """make(counts, below="") writes CLASS/i.png with one grey level each, and returns the root."""

    def make(counts: dict[str, int], below: str = "") -> Path:
        root = tmp_path / "set"
        for label, (name, count) in enumerate(counts.items()):
            folder = root / below / name
            folder.mkdir(parents=True)
            for number in range(count):
                grey = 50 * label + number
                Image.fromarray(np.full((8, 8), grey, np.uint8)).save(folder / f"{number}.png")
        return root

    return make


@pytest.fixture(scope="session")
def numbered() -> Callable[..., ArraySource | LazySource]:
    """make(length, lazy) is a source whose image i shows the number i, labelled i mod 3."""

    def make(length: int, lazy: bool = False) -> ArraySource | LazySource:
        info = Info("numbered", 3, ("a", "b", "c"), (1, 2, 1), "none", "generated")
        numbers = np.arange(length)
        images = np.stack([numbers // 256, numbers % 256], axis=1).astype(np.uint8)
        images = images.reshape(length, 1, 2, 1)
        if lazy:
            return LazySource(range(length), lambda index: (images[index], index % 3), info)
        return ArraySource(images, numbers % 3, info)

    return make
