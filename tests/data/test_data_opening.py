"""From a config section to a source, and what is said of values that are not legal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from bigr_jax.audit import Audited
from bigr_jax.data import ArraySource, LazySource, open_source
from bigr_jax.errors import UserError


@pytest.fixture
def npz(tmp_path: Path) -> str:
    path = tmp_path / "set.npz"
    np.savez(path, x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) % 2)
    return f"npz:{path}"


@pytest.mark.parametrize("kind", [dict, ConfigDict, lambda values: SimpleNamespace(**values)])
def test_a_section_may_be_a_mapping_or_have_attributes(npz: str, kind: type) -> None:
    source = open_source(kind({"source": npz, "size": 4, "channels": 1}), "train")
    assert isinstance(source, ArraySource)
    assert len(source) == 18


def test_a_locked_section_with_the_optional_keys(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "cat" / "a.png")
    section = ConfigDict(
        {"source": f"folder:{tmp_path}", "size": 4, "channels": 3, "data_dir": "", "ram_limit": 1}
    ).lock()
    assert isinstance(open_source(section, "train"), LazySource)


@pytest.mark.parametrize(
    ("given", "split", "words"),
    [
        (
            {"source": "mnist5"},
            "train",
            r"data.source='mnist5' is not known \(did you mean 'mnist5k",
        ),
        (
            {"source": "cifar10"},
            "train",
            "legal: mnist5k, digits, fashion_mnist, folder:PATH, npz:",
        ),
        ({"source": "digits:x"}, "train", "data.source='digits:x' is not known"),
        ({"source": "folder"}, "train", "data.source='folder' lacks its PATH: folder:PATH"),
        ({"source": "folder:"}, "train", "data.source='folder:' lacks its PATH: folder:PATH"),
        ({"source": "tfds"}, "train", "data.source='tfds' lacks its NAME: tfds:NAME"),
        ({"channels": 4}, "train", "data.channels=4 is not known; legal: 0, 1, 3"),
        ({"size": 0}, "train", "data.size=0 is not a side in pixels"),
        ({"size": 2.0}, "train", r"data.size=2\.0 is not a side in pixels"),
        ({}, "valid", "split='valid' is not known; legal: train, test"),
    ],
)
def test_values_that_are_not_legal_are_named(
    npz: str, given: dict[str, object], split: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        open_source({"source": npz, "size": 4, "channels": 1, **given}, split)


def test_importing_the_room_loads_neither_tensorflow_nor_the_record_readers() -> None:
    code = (
        "import sys, bigr_jax.data, bigr_jax.data.catalogue\n"
        "heavy = {'tensorflow', 'torch', 'tensorflow_datasets', 'sklearn', 'mlxtend'}\n"
        "from PIL import Image\n"
        "assert 'WEBP' in Image.OPEN, 'formats are registered before threads decode'\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["source", "size", "channels"])
def test_a_missing_setting_is_named(name):
    section = {"source": "digits", "size": 8, "channels": 1}
    del section[name]
    for given in (section, ConfigDict(section), Audited(ConfigDict(section))):
        with pytest.raises(UserError, match=rf"data\.{name} is missing"):
            open_source(given, "train")
