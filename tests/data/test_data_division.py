"""A training split in two, whose parts arrive in one batch, each in an order of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.data import Share, eval_batches, open_source, train_batches
from bigr_jax.data.described import spec
from bigr_jax.data.division import counts, divide
from bigr_jax.data.order import Order
from bigr_jax.data.source import ArraySource, Info
from bigr_jax.errors import UserError
from bigr_jax.train.state import batch_spec


def small(length):
    images = np.arange(length, dtype=np.uint8).reshape(-1, 1, 1, 1)
    info = Info("numbers", 2, ("a", "b"), (1, 1, 1), "none", "generated")
    return ArraySource(images, np.arange(length) % 2, info)


def shown(source):
    return source.gather(np.arange(len(source)))["image"].ravel()


def take(batches, count):
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.data())
def test_parts_have_no_example_in_common_and_the_same_always(length, data):
    held = data.draw(st.integers(1, length - 1))
    kept = data.draw(st.integers(1, length - held))
    part = divide(small(length), f"{held}:{kept}")
    assert (len(part), len(part.held.source)) == (kept, held)
    mine, theirs = shown(part), shown(part.held.source)
    assert len({*mine.tolist(), *theirs.tolist()}) == held + kept
    both = divide(small(length), f"0:{held + kept}")
    assert both.held is None and {*shown(both)} == {*mine, *theirs}
    again = divide(small(length), f"{held}:{kept}")
    np.testing.assert_array_equal(shown(again), mine)


@pytest.mark.parametrize(
    ("text", "found"),
    [("20%", (20, 80)), ("20", (20, 80)), ("25%:50%", (25, 50)), ("0:100%", (0, 100))],
)
def test_amounts_are_numbers_or_shares(text, found):
    assert counts(text, 100) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("many", "legal: 'HELD' or 'HELD:TRAIN'"),
        ("1.5", "is not known"),
        ("101%", "is not known"),
        ("1:2:3", "is not known"),
        ("100", "holds out 100 and trains on 0 of 100"),
        ("60:60", "holds out 60 and trains on 60 of 100"),
    ],
)
def test_bad_amounts_are_named(text, said):
    with pytest.raises(UserError, match=f"data.held_out='{text}'.*{said}"):
        divide(small(100), text)


def test_nothing_held_out_is_the_source_itself():
    source = small(5)
    assert divide(source, "") is source
    with pytest.raises(UserError, match="held_every=0 must be 1 or more"):
        divide(source, "2", 0)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 40), st.sampled_from([1, 2, 3]))
def test_both_streams_are_exact_on_all_hosts_and_after_a_restart(hosts, start, every):
    source, size = divide(small(37), "11:23", every), 12
    steps = 4
    parts = [
        take(train_batches(source, size, 5, start, Share((host,), hosts), prefetch=0), steps)
        for host in range(hosts)
        if size % hosts == 0 and size // every % hosts == 0
    ]
    if len(parts) < hosts:
        with pytest.raises(UserError, match="does not divide"):
            train_batches(source, size, 5, start, Share((0,), hosts))
        return
    for step in range(steps):
        rows = [part[step] for part in parts]
        whole = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        for prefix, part, count in (
            ("", source, size),
            ("held_", source.held.source, size // every),
        ):
            at = np.arange((start + step) * count, (start + step + 1) * count)
            seed = 5 if not prefix else source.held.seed(5)
            index = Order(len(part), seed).at(at)
            np.testing.assert_array_equal(whole[f"{prefix}index"], index)
            np.testing.assert_array_equal(whole[f"{prefix}image"].ravel(), shown(part)[index])
            np.testing.assert_array_equal(whole[f"{prefix}mask"], 1)
    found = batch_spec(source, size)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (column.shape, column.dtype) for name, column in whole.items()
    }


def test_decoded_examples_come_as_those_in_memory_do(numbered):
    pair = [divide(numbered(20, lazy), "6:11", 2) for lazy in (False, True)]
    for one, other in zip(
        *(take(train_batches(s, 4, 1, 3, threads=2), 3) for s in pair), strict=True
    ):
        assert one.keys() == other.keys()
        for name, column in one.items():
            np.testing.assert_array_equal(other[name], column, strict=True)
    left = [take(eval_batches(source.left, 4), 1)[0]["image"] for source in pair]
    np.testing.assert_array_equal(*left)


def test_each_epoch_shuffles_both_parts_and_not_alike():
    source = divide(small(32), "16:16")
    batches = take(train_batches(source, 16, 0), 3)
    for name in ("index", "held_index"):
        orders = [batch[name].tolist() for batch in batches]
        assert all(sorted(order) == list(range(16)) for order in orders)
        assert orders[0] != orders[1] != orders[2]
    assert all(batch["index"].tolist() != batch["held_index"].tolist() for batch in batches)
    # A measurement has no rows beside those that are asked for.
    assert "held_image" not in take(eval_batches(source, 8), 1)[0]


def test_a_size_that_it_does_not_divide_is_refused_when_called():
    with pytest.raises(UserError, match="held_every=3 does not divide a batch of 8"):
        train_batches(divide(small(32), "16", 3), 8, 0)


def test_a_config_opens_the_parts_and_the_split_that_is_held():
    section = {"source": "digits", "size": 4, "channels": 0, "held_out": "500:200"}
    train, held, test = (open_source(section, split) for split in ("train", "held", "test"))
    assert (len(train), len(held), len(test)) == (200, 500, 359)
    assert spec(train) == spec(test)
    images = train.held.source.gather(np.arange(9))["image"]
    np.testing.assert_array_equal(held.gather(np.arange(9))["image"], images)
    with pytest.raises(UserError, match="there is no split 'held'"):
        open_source({**section, "held_out": ""}, "held")
