"""The task of matching regions: it has the answer that it asks for, which nothing else tells."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bigr_jax.data import open_source
from bigr_jax.data.described import Described, describe, spec
from bigr_jax.data.matching import CLASSES, CODES, EXAMPLES, MARK, MatchingSource
from bigr_jax.data.source import NOT_ASKED, Source
from bigr_jax.errors import UserError


def opened(split: str, size: int = 8) -> Source:
    return open_source({"source": "matching", "size": size, "channels": 0}, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_whoever_finds_the_other_region_knows_the_class(split: str) -> None:
    source = opened(split)
    assert len(source) == EXAMPLES[split]
    count = 1500
    rows = source.gather(np.arange(len(source) - count, len(source)))
    tokens, targets = rows["features"].reshape(count, 64, -1), rows["segments"].reshape(count, 64)
    example = np.arange(count)
    asks = tokens[:, :, MARK].argmax(1)
    code = tokens[example, asks, :CODES].argmax(1)
    same = tokens[example, :, code]
    same[example, asks] = -np.inf
    answers = same.argmax(1)
    told = tokens[example, answers, CODES:MARK].argmax(1)
    asked = targets != NOT_ASKED
    assert (asked.sum(1) == 1).all() and (asked.argmax(1) == asks).mean() > 0.999
    assert (targets[example, asks] == told).mean() > 0.999
    regions = np.stack([asks, answers], 1)
    regions = regions // 16 * 4 + regions % 8 // 2
    assert (regions == rows["regions"]).mean() > 0.999
    assert (rows["regions"][:, 0] != rows["regions"][:, 1]).all()
    # Four tokens are shown, in regions and of codes that differ but for A and B.
    loud = tokens[:, :, :CODES].max(2) > 1.8
    assert abs(loud.sum(1) - 4).mean() < 0.01
    whole = loud.reshape(count, 4, 2, 4, 2).sum((2, 4)).max((1, 2))
    assert (whole == 1).mean() > 0.99
    shown = np.sort(tokens[:, :, :CODES].max(1), axis=1)
    assert (shown[:, -3] > 1.5).mean() > 0.99 and (shown[:, -4] < 1.5).mean() > 0.99
    for values, kinds in ((told, CLASSES), (code, CODES), (rows["regions"], 16)):
        shares = np.bincount(values.ravel(), minlength=kinds) / values.size
        assert abs(shares * kinds - 1).max() < 0.25
    noise = tokens[..., MARK + 1 :]
    assert abs(noise.std() - 0.3) < 0.003 and abs(noise.mean()) < 0.003


def test_an_example_is_the_same_whenever_it_is_made_and_the_parts_differ() -> None:
    one, other = opened("train").gather(np.array([5, 65535, 5])), opened("train")
    for name, column in other.gather(np.array([65535, 5])).items():
        np.testing.assert_array_equal(one[name][1:], column)
    test = opened("test").gather(np.array([5]))
    assert (test["features"] != one["features"][0]).all()


def test_what_the_trainer_sees_of_it() -> None:
    source = opened("test")
    columns = {
        "features": ((8, 8, 32), np.dtype(np.float32)),
        "segments": ((8, 8), np.dtype(np.uint8)),
        "regions": ((2,), np.dtype(np.int32)),
    }
    assert spec(source) == columns
    again = Described(json.loads(json.dumps(describe(source))), lambda: source)
    assert again.spec == columns and again.info == source.info


def test_maps_of_another_size() -> None:
    with pytest.raises(UserError, match=r"data\.size=16 is not the side of the maps; legal: 8"):
        opened("train", 16)


def test_what_can_be_told_without_a_match() -> None:
    """Naming the commonest of the labels that are shown, the one of B and of two others."""
    source = MatchingSource("test")
    labels = source._labels.astype(int)
    counts = (labels[:, :, None] == np.arange(CLASSES)).sum(1)
    asked = np.take_along_axis(counts, labels[:, :1], 1)[:, 0]
    # Among equally common ones any may be named.
    ties = (counts == counts.max(1, keepdims=True)).sum(1)
    right = np.where(asked == counts.max(1), 1 / ties, 0).mean()
    exact = (42 / 64 * 1 + 21 / 64 * 2 + 1 / 64 * 3) / 3
    assert abs(exact - 0.453) < 5e-4 and abs(right - exact) < 0.02
