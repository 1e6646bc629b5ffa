"""Editing on codes: what stays, what is drawn, and where the published counting goes wrong."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.generate import editing
from bigr_jax.generate.codes import sample_codes, sample_conditioned
from bigr_jax.generate.masked import MaskedSampling
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import make_schedule

GRID = ROWS, COLS = 3, 4
LENGTH, BITS, BATCH = 12, 3, 3
NET = BiGR(
    depth=1, width=8, heads=1, bits=BITS, grid=GRID, num_classes=2, head_width=4, head_blocks=1,
    ffn_hidden=8, target="direct",
)  # fmt: skip
ONCE = make_schedule("linear", 1)
SAMPLING = MaskedSampling(iterations=2, denoise_steps=1, cfg_scale=2.5, gumbel_temperature=0.0)
LINEAR = dataclasses.replace(SAMPLING, remaining="linear")
KEYS = jax.random.split(jax.random.key(1), BATCH)
CODES = np.random.default_rng(0).integers(0, 2, (BATCH, LENGTH, BITS)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    bits, t = jnp.zeros((1, LENGTH, BITS)), jnp.ones((1, LENGTH), jnp.int32)
    labels = jnp.zeros((1,), int)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), bits, labels, t > 0, bits, t)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), nn.unbox(shapes)
    )


@pytest.fixture(scope="module")
def inpaint(variables):
    def run(keys, codes, mask, labels=None):
        return editing.inpaint(NET, variables, keys, codes, mask, ONCE, LINEAR, labels=labels)

    return jax.jit(run)


def masks(seed):
    """Masks of every share, one of them of everything."""
    rank = np.random.default_rng(seed).permuted(np.tile(np.arange(LENGTH), (BATCH, 1)), axis=1)
    return rank < np.array([[1], [seed % LENGTH], [LENGTH]])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_what_is_not_marked_stays_bit_by_bit(inpaint, seed):
    mask = masks(seed)
    found = np.asarray(inpaint(KEYS, CODES, mask))
    np.testing.assert_array_equal(found[~mask], CODES[~mask])
    assert set(np.unique(found)) <= {0.0, 1.0}
    assert (found[2] != CODES[2]).any()
    # What lies under the mask is not read.
    other = np.where(mask[..., None], 1 - CODES, CODES)
    np.testing.assert_array_equal(inpaint(KEYS, other, mask), found)


def published(predict, bits, known, iterations, rng):
    """One image inpainted with the published count: the schedule is that of the KNOWN tokens."""
    bits, known = bits.copy(), known.copy()
    total = before = int(known.sum())
    drawn = []
    for i in range(iterations):
        p = predict(bits, ~known)
        remain = int(np.floor(total * (1 - (i + 1) / iterations)))
        take, before = before - remain, remain
        confidence = np.where(known, -np.inf, (2 * np.abs(p - 0.5)).mean(-1))
        chosen = np.argsort(-confidence)[:take]
        bits[chosen] = rng.random((take, BITS)) < p[chosen]
        known[chosen] = True
        drawn.append(take)
    drawn.append(int((~known).sum()))
    bits[~known] = rng.random((drawn[-1], BITS)) < predict(bits, ~known)[~known]
    return bits, drawn


def test_the_published_count_draws_known_tokens_again_and_ours_does_not(variables, inpaint):
    def probabilities(bits, unknown):
        null, t = jnp.full(1, NET.num_classes), jnp.ones((1, LENGTH), jnp.int32)
        logits = NET.apply(variables, bits[None], null, unknown[None], 0 * bits[None], t)
        return jax.nn.sigmoid(logits)[0]

    jitted = jax.jit(probabilities)

    def predict(bits, unknown):
        return np.asarray(jitted(bits, unknown))

    rng = np.random.default_rng(0)
    known = np.ones(LENGTH, bool)
    known[[1, 5, 6]] = False
    theirs, _ = published(predict, CODES[0], known, 2, rng)
    assert (theirs[known] != CODES[0][known]).any()
    ours = np.asarray(inpaint(KEYS, CODES, np.tile(~known, (BATCH, 1))))
    np.testing.assert_array_equal(ours[:, known], CODES[:, known])
    # With few known tokens, most of the others are left for a pass that no iteration follows.
    _, drawn = published(predict, CODES[0], ~known, 3, rng)
    assert drawn == [1, 1, 1, LENGTH - 2 * 3]


def test_no_class_guided_against_no_class_is_no_class(variables, inpaint):
    mask = masks(7)
    null = jnp.full(BATCH, NET.num_classes)
    guided = jax.jit(lambda labels: inpaint(KEYS, CODES, mask, labels))
    np.testing.assert_array_equal(guided(null), inpaint(KEYS, CODES, mask))
    assert not np.array_equal(guided(null - 1), guided(null))


def test_an_image_depends_on_its_own_key_and_codes_alone(inpaint):
    mask, order = masks(5), np.array([2, 0, 1])
    found = np.asarray(inpaint(KEYS, CODES, mask))
    moved = inpaint(KEYS[order], CODES[order], mask[order])
    np.testing.assert_array_equal(moved, found[order])
    first, other = np.zeros(BATCH, int), np.array([0, 0, 1])
    equal = inpaint(KEYS[other], CODES[first], mask[first + 2])
    np.testing.assert_array_equal(equal[0], equal[1])
    assert not np.array_equal(equal[0], equal[2])


def test_outpainting_is_inpainting_around(variables, inpaint):
    mask = masks(4)
    found = jax.jit(
        lambda: editing.outpaint(NET, variables, KEYS, jnp.asarray(CODES), mask, ONCE, LINEAR)
    )()
    np.testing.assert_array_equal(found, inpaint(KEYS, CODES, ~mask))
    np.testing.assert_array_equal(found[mask], CODES[mask])


def test_mixing_ends_at_the_classes_and_goes_through_their_mixtures(variables):
    first, second = jnp.zeros(BATCH, int), jnp.ones(BATCH, int)
    same = KEYS[jnp.zeros(BATCH, int)]

    def mixed(share):
        ends = (first, second)
        return editing.interpolate(NET, variables, same, ends, share, ONCE, SAMPLING)

    path = np.asarray(jax.jit(mixed)(jnp.array([1.0, 0.3, 0.0])))

    def ends(labels):
        return sample_codes(NET, variables, same, labels, ONCE, SAMPLING)

    pure = np.asarray(jax.jit(ends)(jnp.array([0, 1, 1])))
    np.testing.assert_array_equal(path[0], pure[0])
    np.testing.assert_array_equal(path[2], pure[2])
    table = np.asarray(variables["params"]["classes"]["table"])
    mixture = np.float32(0.3) * table[0] + np.float32(0.7) * table[1]
    condition = jnp.asarray(np.stack([table[0], mixture, table[1]])[:, None])
    direct = jax.jit(lambda c: sample_conditioned(NET, variables, same, c, ONCE, SAMPLING))(
        condition
    )
    np.testing.assert_array_equal(direct, path)
    # One key for all shares: equal shares are equal images.
    equal = np.asarray(jax.jit(mixed)(jnp.array([0.5, 0.5, 0.5])))
    np.testing.assert_array_equal(equal[0], equal[1])


def test_a_sweep_draws_every_token_once_cell_by_cell(monkeypatch):
    grid, sweeps, asked = (3, 5), 2, []
    net = NET.clone(grid=grid, parent=None)

    def fake(net, variables, keys, codes, mask, schedule, sampling, **how):
        asked.append(how)
        # A number in base two that tells in which turns a token was drawn.
        return 2 * codes + mask[..., None]

    monkeypatch.setattr(editing, "inpaint", fake)
    count = 40
    keys = jax.random.split(jax.random.key(3), count)
    codes = jnp.zeros((count, 15, 1))
    found = editing.enrich(net, {}, keys, codes, ONCE, LINEAR, sweeps=sweeps)
    assert asked == [{"labels": None}]
    turns = np.asarray(found[..., 0]).astype(int)
    for image in turns.reshape(count, *grid):
        places = {image[y, x] for y in (0, 1) for x in (0, 1)}
        assert len(places) == 4
        for y, x in np.ndindex(grid):
            assert image[y, x] == image[y % 2, x % 2]
            written = np.binary_repr(image[y, x], 4 * sweeps)
            assert [written[:4].count("1"), written[4:].count("1")] == [1, 1]
    # Each image has an order of its own, and each sweep too.
    assert len({tuple(row) for row in turns}) > count // 2
    assert any(written[:4] != written[4:] for written in map("{:08b}".format, turns[:, 0]))


def test_enriching_is_inpainting_in_turns(variables):
    many = NET.clone(grid=(2, 2), parent=None)
    small = {"params": {**variables["params"]}}
    small["params"]["position"] = variables["params"]["position"][:4]
    codes = jnp.asarray(CODES[:, :4])
    once = dataclasses.replace(LINEAR, iterations=1)

    def sweep(keys):
        return editing.enrich(many, small, keys, codes, ONCE, once, sweeps=1)

    run = jax.jit(sweep)
    found = np.asarray(run(KEYS))
    assert found.shape == codes.shape and set(np.unique(found)) <= {0.0, 1.0}
    assert not np.array_equal(found, codes)
    np.testing.assert_array_equal(run(KEYS[::-1])[1], found[1])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 30), st.integers(1, 30))
def test_a_token_is_drawn_where_its_middle_is_marked(rows, cols, height, width):
    rng = np.random.default_rng(rows + 7 * cols + 31 * height + 97 * width)
    mask = rng.random((2, height, width)) < 0.5
    found = editing.token_mask(mask, (rows, cols))
    assert found.shape == (2, rows * cols) and found.dtype == bool
    for image, row, col in np.ndindex(2, rows, cols):
        # The middle of the token, in pixels, lies in pixel floor(middle).
        y, x = (2 * row + 1) * height // (2 * rows), (2 * col + 1) * width // (2 * cols)
        assert found[image, row * cols + col] == mask[image, y, x]


def test_a_mask_on_the_device_is_as_good():
    mask = np.random.default_rng(0).random((6, 8)) < 0.5
    traced = jax.jit(lambda m: editing.token_mask(m, GRID))(mask)
    np.testing.assert_array_equal(traced, editing.token_mask(mask, GRID))
    tokens = editing.token_mask(mask[::2, ::2], (3, 4))
    np.testing.assert_array_equal(tokens, mask[::2, ::2].reshape(-1))


def test_the_published_settings():
    base = MaskedSampling(iterations=9, denoise_steps=4, gumbel_temperature=0.3)
    found = editing.changed(base, editing.INPAINT)
    assert found == MaskedSampling(25, 4, 1.0, 2.5, gumbel_temperature=0.0, remaining="linear")
    assert editing.changed(base, editing.ENRICH, {"iterations": 3}) == MaskedSampling(
        3, 4, 1.0, 10.0, gumbel_temperature=0.0, remaining="linear"
    )
    assert editing.changed(base, editing.INTERPOLATE) == dataclasses.replace(base, iterations=20)


def test_settings_are_read_as_what_they_are():
    found = editing.changed(
        MaskedSampling(), {"cfg_scale": 3, "iterations": np.int64(4), "temperature": np.float32(2)}
    )
    assert (found.cfg_scale, found.iterations, found.temperature) == (3.0, 4, 2.0)
    assert [type(x) for x in (found.cfg_scale, found.iterations)] == [float, int]
    for wrong, message in (
        ({"cfg_scal": 2.0}, r"sampling setting='cfg_scal' .*did you mean 'cfg_scale'\?"),
        ({"iterations": 2.5}, "sample.iterations=2.5 is no int"),
        ({"iterations": True}, "sample.iterations=True is no int"),
        ({"deterministic": 1}, "sample.deterministic=1 is no bool"),
        ({"order": "entrpy"}, "did you mean 'entropy'"),
        ({"iterations": 0}, "sample.iterations=0: legal"),
    ):
        with pytest.raises(UserError, match=message):
            editing.changed(MaskedSampling(), wrong)
