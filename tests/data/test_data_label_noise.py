"""Labels made wrong: how many, which, into what; the same ever after, and apart from the order."""

from types import SimpleNamespace

import numpy as np
import pytest

from bigr_jax.data import ArraySource, Info, open_source
from bigr_jax.data.absent import open_or_describe
from bigr_jax.data.described import spec
from bigr_jax.data.label_noise import CIFAR10_NAMES, NoisyLabels, confused, parse
from bigr_jax.data.order import Order
from bigr_jax.errors import UserError

COUNT = 6000
NAMES = tuple(sorted(CIFAR10_NAMES))


def source(names=NAMES, count=COUNT):
    labels = np.random.default_rng(0).integers(0, len(names), count)
    info = Info("made", len(names), names, (1, 1, 1), "none", "generated")
    return ArraySource(np.zeros((count, 1, 1, 1), np.uint8), labels, info)


def labels(noise, names=NAMES):
    rows = NoisyLabels(source(names), parse(noise)).gather(np.arange(COUNT))
    assert rows["label"].dtype == rows["clean"].dtype == np.int32
    np.testing.assert_array_equal(rows["clean"], source(names).gather(np.arange(COUNT))["label"])
    return rows["label"], rows["clean"]


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_symmetric_noise_redraws_evenly_from_all_classes(rate):
    label, clean = labels(f"symmetric:{rate}")
    wrong = label != clean
    assert abs(wrong.mean() - 0.9 * rate) < 0.02
    if rate == 1:
        table = np.zeros((10, 10))
        np.add.at(table, (clean, label), 1)
        # Chi squared of 100 cells.
        assert ((table - COUNT / 100) ** 2 / (COUNT / 100)).sum() < 160


def test_asymmetric_noise_of_cifar10_is_that_of_the_literature():
    label, clean = labels("asymmetric:0.4")
    pairs = {(NAMES[a], NAMES[b]) for a, b in zip(clean, label, strict=True) if a != b}
    assert pairs == {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("deer", "horse"),
        ("cat", "dog"),
        ("dog", "cat"),
    }
    strikeable = np.isin(clean, [NAMES.index(a) for a, _ in pairs])
    assert abs((label != clean)[strikeable].mean() - 0.4) < 0.03


def test_names_in_any_order_and_other_data():
    backwards = NAMES[::-1]
    found = confused(backwards)
    assert backwards[found[backwards.index("truck")]] == "automobile"
    np.testing.assert_array_equal(confused(("a", "b", "c")), [1, 2, 0])
    label, clean = labels("asymmetric:1", ("a", "b", "c"))
    np.testing.assert_array_equal(label, (clean + 1) % 3)


def test_noise_depends_on_index_and_seed_alone():
    first = NoisyLabels(source(), parse("symmetric:0.5"))
    some = np.array([17, 3, 17, COUNT - 1])
    whole = first.gather(np.arange(COUNT))["label"]
    np.testing.assert_array_equal(first.gather(some)["label"], whole[some])
    np.testing.assert_array_equal(labels("symmetric:0.5:0")[0], whole)
    assert (labels("symmetric:0.5:1")[0] != whole).mean() > 0.3
    # What is struck at a lower rate is struck at a higher.
    low, high = (labels(f"symmetric:{rate}") for rate in (0.2, 0.6))
    assert np.all((high[0] != high[1])[low[0] != low[1]])


@pytest.mark.parametrize("seed", [0, 1])
def test_no_epoch_sees_wrong_labels_first(seed):
    label, clean = labels(f"symmetric:0.4:{seed}")
    order = Order(COUNT, seed)
    for epoch in range(3):
        early = order.at(epoch * COUNT + np.arange(COUNT // 4))
        assert abs((label != clean)[early].mean() - 0.36) < 0.05


@pytest.mark.parametrize(
    "text", ["symmetric", "symmetric:x", "symmetric:1.1", "even:0.1", "symmetric:0.1:1:2",
             "asymmetric:-0.1", "symmetric:0.1:-1", "symmetric:nan"]
)  # fmt: skip
def test_what_is_not_legal_is_named(text):
    with pytest.raises(UserError, match=f"data.noise='{text}'.*legal: symmetric:RATE"):
        parse(text)


def test_only_training_labels_of_sources_that_have_some():
    section = {"source": "digits", "size": 4, "channels": 1, "noise": "symmetric:0.5"}
    for given in (section, SimpleNamespace(**section)):
        train, test = (
            open_source(given, split).gather(np.arange(40)) for split in ("train", "test")
        )
        assert "clean" not in test and np.any(train["label"] != train["clean"])
    with pytest.raises(UserError, match="no labels"):
        open_source({**section, "source": "matching", "size": 8}, "train")


def test_data_that_are_absent_are_known_to_have_true_labels():
    section = SimpleNamespace(source="tfds:cifar10", size=32, channels=3, noise="symmetric:0.4",
                              data_dir="/nowhere")  # fmt: skip
    train, test = (open_or_describe(section, split) for split in ("train", "test"))
    assert (len(train), len(test), train.info.num_classes) == (50_000, 10_000, 10)
    assert spec(train)["clean"] == ((), np.int32) and "clean" not in spec(test)


def test_bad_images_and_copies_are_told_through():
    below = source()
    below.corrupt, below.copies = 3, 2
    noisy = NoisyLabels(below, parse("symmetric:0.5"))
    assert noisy.corrupt == 3 and noisy.copies == 2 and len(noisy) == COUNT
    assert noisy.info == below.info
