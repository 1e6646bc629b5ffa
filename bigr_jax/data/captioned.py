"""Images with captions: two digits side by side, emoji with their names, or a set of one's own.

A caption arrives as features, one vector per token, and a mask of the tokens that there are. No
pretrained encoder is needed for the first two: a word's vector is drawn from its own letters.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigr_jax.data.cards import data_root
from bigr_jax.data.embedded import open_digits, open_mnist5k
from bigr_jax.data.image import fit, square
from bigr_jax.data.source import ArraySource, Info, Request
from bigr_jax.data.split import held_out
from bigr_jax.errors import UserError

WORDS, FEATURES = 8, 64
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The first is that of all test captions.
TEMPLATES = ("{} and {}", "{} beside {}", "a {} and a {}", "the digits {} {}")
PAIRS = {"train": 8000, "test": 2000}
EMOJI = "emoji-datasource-twitter"
_VERSION, _TEST_FRACTION = "16.0.0", 0.1
_OPENERS: Mapping[str, Callable[[Request], ArraySource]] = {
    "digits": open_digits,
    "mnist5k": open_mnist5k,
}


class CaptionedSource(ArraySource):
    """A source in memory whose images have captions.

    captions  the distinct ones; `which` int [N] tells that of every image
    text      their features, float [M, L, F], and mask, bool [M, L]
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        info: Info,
        captions: Sequence[str],
        which: np.ndarray,
        text: tuple[np.ndarray, np.ndarray],
    ) -> None:
        super().__init__(images, labels, info)
        self.captions, self.which = tuple(captions), which
        self._features, self._mask = text

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what an `ArraySource` does, and {"text": float [n, L, F], "text_mask": bool [n,
        L]} of any n indices.
        """
        rows = self.which[indices]
        text = {"text": self._features[rows], "text_mask": self._mask[rows]}
        return {**super().gather(indices), **text}


def text_features(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns features, float32 [n, WORDS, FEATURES], of the first words of n captions, and the
    mask, bool [n, WORDS], of words that there are.

    A word is a vector of signs that its hash decides, plus the same vector shifted by the word's
    place (binding by permutation, Sahlgren, Holst and Kanerva 2008), so that a sum over the words
    still tells their order; every feature has variance 1. Only letters and digits count.
    """
    features = np.zeros((len(captions), WORDS, FEATURES), np.float32)
    mask = np.zeros(features.shape[:2], bool)
    for row, caption in enumerate(captions):
        for place, word in enumerate(re.findall(r"\w+", caption.lower())[:WORDS]):
            vector = _signs(word)
            features[row, place] = (vector + np.roll(vector, place + 1)) / np.sqrt(2)
            mask[row, place] = True
    return features, mask


def open_captioned(request: Request) -> CaptionedSource:
    """Returns the part of a captioned set that `captioned:NAME` asks for.

    digits, mnist5k  two of these digits side by side, as "three and seven" asks; the label is the
                     left one. Pairs that differ by 3 or by 7 are seen by the test part alone, so
                     that its captions are new throughout
    emoji            the npm package emoji-datasource-twitter, by name; labels are the categories
    PATH.npz         arrays image uint8 [N, H, W] or [N, H, W, C], text float [N, L, F] (features of
                     any encoder), text_mask [N, L], and where there are some, label int [N] and
                     caption [N]; the tenth whose index hashes lowest is the test part

    Raises UserError for another name, and where data are missing or not of this form.
    """
    name = request.argument
    if name in _OPENERS:
        return _digit_pairs(request)
    if name == "emoji":
        return _emoji(request)
    if name.endswith(".npz"):
        return _npz(request)
    legal = ", ".join((*_OPENERS, "emoji", "PATH.npz"))
    raise UserError(f"data.source={request.source!r}: no captioned set {name!r}; legal: {legal}")


def unseen(left: int, right: int) -> bool:
    """Whether two digits are a pair, in either order, that training never shows."""
    return (left - right) % 10 in (3, 7)


@functools.cache
def _signs(word: str) -> np.ndarray:
    digest = hashlib.shake_256(word.encode()).digest(FEATURES // 8)
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) * 2 - 1


def _digit_pairs(request: Request) -> CaptionedSource:
    size, name = request.size, request.argument
    if size % 2:
        raise UserError(f"data.size={size} does not divide into two digits; legal: even sizes")
    half = request._replace(source=name, size=size // 2, argument="")
    one = _OPENERS[name](half)
    digits = one.gather(np.arange(len(one)))
    members = [np.flatnonzero(digits["label"] == digit) for digit in range(10)]
    test = request.split == "test"
    pairs = [(a, b) for a in range(10) for b in range(10) if unseen(a, b) == test]
    templates = TEMPLATES[:1] if test else TEMPLATES
    captions = [form.format(DIGITS[a], DIGITS[b]) for a, b in pairs for form in templates]
    count = PAIRS[request.split]
    # Of NumPy's generators, the one whose numbers are promised to stay the same.
    random = np.random.RandomState(int(test))
    which = np.arange(count) % len(captions)
    shape = (size, size, one.info.image_shape[2])
    images, top = np.zeros((count, *shape), np.uint8), size // 4
    for image, caption in zip(images, which, strict=True):
        for side, digit in enumerate(pairs[caption // len(templates)]):
            left = side * size // 2
            drawn = members[digit][random.randint(len(members[digit]))]
            image[top : top + size // 2, left : left + size // 2] = digits["image"][drawn]
    labels = np.array([left for left, _ in pairs], np.int32)[which // len(templates)]
    origin = f"pairs of {one.info.origin}"
    info = Info(f"captioned:{name}", len(DIGITS), DIGITS, shape, one.info.licence, origin)
    return CaptionedSource(images, labels, info, captions, which, text_features(captions))


def _emoji(request: Request) -> CaptionedSource:
    folder = data_root() / EMOJI / "package"
    try:
        entries = json.loads((folder / "emoji.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"data.source='captioned:emoji' needs {folder}; get it with: npm pack "
            f"{EMOJI}@{_VERSION} && mkdir -p {folder.parent} && "
            f"tar xzf {EMOJI}-{_VERSION}.tgz -C {folder.parent}"
        ) from None
    # Components are skin tones and hair without a face.
    entries = [entry for entry in entries if entry["category"] != "Component"]
    categories = sorted({entry["category"] for entry in entries})
    labels = np.array([categories.index(entry["category"]) for entry in entries])
    names = [entry["image"] for entry in entries]
    test = held_out(labels, names, _TEST_FRACTION)
    chosen = np.flatnonzero(test if request.split == "test" else ~test)
    request = request.with_channels(3)
    images = np.empty((len(chosen), *request.image_shape), np.uint8)
    for row, index in enumerate(chosen):
        with Image.open(folder / "img" / "twitter" / "64" / names[index]) as image:
            images[row] = square(image, request.size, request.channels)
    said = [_name(entries[index]) for index in chosen]
    captions, which = np.unique(said, return_inverse=True)
    licence, origin = "CC-BY-4.0 (art)", f"npm {EMOJI} {_VERSION}"
    shape = request.image_shape
    info = Info("captioned:emoji", len(categories), tuple(categories), shape, licence, origin)
    text = text_features(captions.tolist())
    return CaptionedSource(images, labels[chosen], info, captions.tolist(), which, text)


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name") or entry["short_name"].replace("_", " ")).lower()


def _npz(request: Request) -> CaptionedSource:
    path = Path(request.argument).expanduser()
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a .npz file of plain arrays: {error}") from None
    images, features, mask = _checked(arrays, path)
    count = len(images)
    labels = arrays.get("label", np.zeros(count, np.int32)).astype(np.int32)
    captions = arrays.get("caption", np.array([str(number) for number in range(count)]))
    test = held_out(np.zeros(count, int), [str(index) for index in range(count)], _TEST_FRACTION)
    chosen = test if request.split == "test" else ~test
    request = request.with_channels(1 if images.shape[-1] == 1 else 3)
    classes = 1 + int(labels.max())
    names = tuple(str(label) for label in range(classes))
    info = Info(path.stem, classes, names, request.image_shape, "unknown", str(path))
    return CaptionedSource(
        fit(images[chosen], request.size, request.channels),
        labels[chosen],
        info,
        [str(caption) for caption in captions[chosen]],
        np.arange(int(chosen.sum())),
        (features[chosen], mask[chosen]),
    )


def _checked(
    arrays: Mapping[str, np.ndarray], path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for name in ("image", "text", "text_mask"):
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r}; it holds {', '.join(arrays)}")
    images, features = arrays["image"], arrays["text"]
    images = images[..., None] if images.ndim == 3 else images
    mask = arrays["text_mask"].astype(bool)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise UserError(f"{path}: image is {images.dtype} {images.shape}, expected uint8 [N,H,W,C]")
    right = features.ndim == 3 and features.dtype.kind == "f" and len(features) == len(images)
    if not right or mask.shape != features.shape[:2]:
        raise UserError(
            f"{path}: text is {features.dtype} {features.shape}, text_mask {mask.shape}; expected "
            f"float [{len(images)}, tokens, features] and [{len(images)}, tokens]"
        )
    for name in ("label", "caption"):
        if name in arrays and arrays[name].shape != (len(images),):
            raise UserError(f"{path}: {name} is {arrays[name].shape}, expected ({len(images)},)")
    return images, features, mask
