"""Captioned sets: pairs that training never shows, features that words alone decide, sets of one's
own.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bigr_jax.data import captioned
from bigr_jax.data.captioned import DIGITS, TEMPLATES, open_captioned, text_features, unseen
from bigr_jax.data.embedded import open_digits
from bigr_jax.data.source import Request
from bigr_jax.errors import UserError

RAM = 1 << 20


def request(argument, split="train", size=16, channels=0):
    return Request(f"captioned:{argument}", argument, split, size, channels, "", RAM)


@pytest.fixture(scope="module")
def pairs():
    pytest.importorskip("sklearn", reason="the digits lie in scikit-learn")
    return {split: open_captioned(request("digits", split)) for split in ("train", "test")}


def words(source):
    """Returns the two digits that every caption of a source names, [captions, 2]."""
    found = [[DIGITS.index(w) for w in text.split() if w in DIGITS] for text in source.captions]
    return np.array(found)


def test_no_pair_of_the_test_part_is_ever_trained_on(pairs):
    seen = {frozenset(pair) for pair in words(pairs["train"]).tolist()}
    new = {frozenset(pair) for pair in words(pairs["test"]).tolist()}
    assert len(seen) == 45 and len(new) == 10 and not seen & new
    assert all(unseen(*pair) == unseen(*pair[::-1]) for pair in words(pairs["test"]).tolist())
    # Every word is known from other pairs, at either place.
    for place in range(2):
        assert set(words(pairs["train"])[:, place]) == set(range(10))
        counts = np.bincount(words(pairs["test"])[:, place], minlength=10)
        np.testing.assert_array_equal(counts, np.full(10, 2))


def test_captions_are_seen_equally_often(pairs):
    for split, forms in (("train", TEMPLATES), ("test", TEMPLATES[:1])):
        source = pairs[split]
        counts = np.bincount(source.which)
        assert len(source.captions) == (80 if split == "train" else 20) * len(forms)
        assert counts.max() - counts.min() <= 1
        assert source.captions[0] == forms[0].format(*(DIGITS[d] for d in words(source)[0]))


def test_the_digits_stand_side_by_side_and_are_of_their_part(pairs):
    rows = np.arange(0, 2000, 97)
    for split, source in pairs.items():
        one = open_digits(Request("digits", "", split, 8, 0, "", RAM))
        every = one.gather(np.arange(len(one)))
        batch = source.gather(rows)
        assert batch["image"].shape == (len(rows), 16, 16, 1)
        assert not batch["image"][:, :4].any() and not batch["image"][:, 12:].any()
        for row, image in zip(rows, batch["image"], strict=True):
            for side, digit in enumerate(words(source)[source.which[row]]):
                half = image[4:12, 8 * side : 8 * side + 8]
                same = (every["image"] == half).all((1, 2, 3))
                assert set(every["label"][same]) == {digit}
        np.testing.assert_array_equal(batch["label"], words(source)[source.which[rows], 0])
        assert source.info.num_classes == 10 and source.info.image_shape == (16, 16, 1)


def test_a_batch_holds_the_words_of_its_captions(pairs):
    batch = pairs["train"].gather(np.array([5, 0, 5]))
    features, mask = text_features([pairs["train"].captions[pairs["train"].which[5]]])
    np.testing.assert_array_equal(batch["text"][[0, 2]], np.repeat(features, 2, 0))
    np.testing.assert_array_equal(batch["text_mask"][0], mask[0])
    assert batch["text"].dtype == np.float32 and batch["text_mask"].dtype == bool
    assert not np.array_equal(batch["text"][0], batch["text"][1])


def test_a_second_opening_gives_the_same(pairs):
    again, rows = open_captioned(request("digits")), np.arange(50)
    for name, value in pairs["train"].gather(rows).items():
        np.testing.assert_array_equal(value, again.gather(rows)[name])


def test_words_alone_decide_their_features():
    features, mask = text_features(["Three and seven", "seven, three!", "", "a " * 12])
    np.testing.assert_array_equal(mask.sum(1), [3, 2, 0, 8])
    assert features.shape == (4, 8, 64) and not features[~mask].any()
    # Signs plus shifted signs: three values, of variance one.
    assert set(np.round(features[mask] ** 2, 4).ravel()) == {0.0, 2.0}
    assert abs((features[mask] ** 2).mean() - 1) < 0.2
    seven, first = features[0, 2], features[1, 0]
    assert not np.array_equal(seven, first)
    # The same word at two places shares what does not tell the place.
    assert seven @ first > 15 > abs(seven @ features[1, 1])


def test_the_order_of_words_is_in_their_sum():
    first, second = (text_features([text])[0].sum(1)[0] for text in ("one two", "two one"))
    assert abs(first - second).max() > 1


def test_words_are_those_of_every_machine():
    signs = captioned._signs("seven")
    bits = np.packbits((signs > 0).astype(np.uint8)).tobytes().hex()
    # python -c "import hashlib; print(hashlib.shake_256(b'seven').hexdigest(8))"
    assert bits == "7dc09a0590603208"


@pytest.fixture
def emoji(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGR_DATA", str(tmp_path))
    folder = tmp_path / captioned.EMOJI / "package"
    (folder / "img" / "twitter" / "64").mkdir(parents=True)
    entries = []
    for number in range(30):
        name = f"{number:04x}.png"
        kind = ("Food", "Animals", "Component")[number % 3]
        named = {"name": f"THING {number}"} if number else {"name": None}
        entries.append({**named, "short_name": "some_thing", "category": kind, "image": name})
        picture = Image.new("RGBA", (64, 64), (8 * number, 0, 0, 255))
        picture.paste((0, 0, 0, 0), (0, 0, 64, 8))
        picture.save(folder / "img" / "twitter" / "64" / name)
    (folder / "emoji.json").write_text(json.dumps(entries), "utf-8")


def test_emoji_have_their_names(emoji):
    parts = {split: open_captioned(request("emoji", split)) for split in ("train", "test")}
    assert [len(parts[split]) for split in ("train", "test")] == [18, 2]
    assert parts["train"].info.class_names == ("Animals", "Food")
    for source in parts.values():
        batch = source.gather(np.arange(len(source)))
        for row in range(len(source)):
            caption = source.captions[source.which[row]]
            number = 0 if caption == "some thing" else int(caption.removeprefix("thing "))
            image = batch["image"][row]
            assert (image[0] == 255).all() and (image[-1, 0] == (8 * number, 0, 0)).all()
            assert batch["label"][row] == (1 if number % 3 == 0 else 0)


def test_missing_emoji_name_their_package(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGR_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"npm pack emoji-datasource-twitter@16\.0\.0 && mkdir -p"):
        open_captioned(request("emoji"))


ARRAYS = {
    "image": np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8),
    "text": np.random.default_rng(0).normal(size=(20, 3, 5)).astype(np.float16),
    "text_mask": np.arange(3) <= np.arange(20)[:, None] % 3,
}


def saved(tmp_path, **arrays):
    path = tmp_path / "captions.npz"
    np.savez(path, **arrays)
    return str(path)


def test_features_of_any_encoder(tmp_path):
    names = np.array([f"picture {number}" for number in range(20)])
    path = saved(tmp_path, **ARRAYS, label=np.arange(20) % 4, caption=names)
    parts = [open_captioned(request(path, split, size=8)) for split in ("train", "test")]
    assert [len(part) for part in parts] == [18, 2]
    for part in parts:
        batch = part.gather(np.arange(len(part)))
        rows = [int(part.captions[index].split()[1]) for index in part.which]
        np.testing.assert_array_equal(batch["image"][..., 0], ARRAYS["image"][rows])
        np.testing.assert_array_equal(batch["text"], ARRAYS["text"][rows])
        np.testing.assert_array_equal(batch["text_mask"], ARRAYS["text_mask"][rows])
        np.testing.assert_array_equal(batch["label"], np.array(rows) % 4)
        assert batch["text"].dtype == np.float16 and part.info.num_classes == 4


def test_labels_and_captions_may_be_missing(tmp_path):
    source = open_captioned(request(saved(tmp_path, **ARRAYS), size=8))
    assert source.info.num_classes == 1 and not source.gather(np.arange(18))["label"].any()
    assert set(source.captions) < {str(number) for number in range(20)}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"text": None}, "has no array 'text'; it holds image, text_mask"),
        ({"text": ARRAYS["text"][:, 0]}, r"text is float16 \(20, 5\)"),
        ({"text": ARRAYS["text"].astype(int)}, r"text is int64 \(20, 3, 5\)"),
        ({"text_mask": ARRAYS["text_mask"][:, :2]}, r"text_mask \(20, 2\); expected float \[20,"),
        ({"image": ARRAYS["image"][:, 0]}, r"image is uint8 \(20, 8\)"),
        ({"caption": np.array(["a"])}, r"caption is \(1,\), expected \(20,\)"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, changes, text):
    arrays = {name: value for name, value in {**ARRAYS, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=text):
        open_captioned(request(saved(tmp_path, **arrays), size=8))


@pytest.mark.parametrize(
    "argument, size, text",
    [
        ("digit", 16, "no captioned set 'digit'; legal: digits, mnist5k, emoji, PATH.npz"),
        ("digits", 15, "data.size=15 does not divide into two digits"),
        ("none.npz", 16, "none.npz is not a .npz file of plain arrays"),
    ],
)
def test_mistakes_in_a_config_are_named(argument, size, text):
    with pytest.raises(UserError, match=text):
        open_captioned(request(argument, size=size))
