"""Images, masks and labels of every kind that people have, and those that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bigr_jax import inputs
from bigr_jax.data.image import fit
from bigr_jax.errors import UserError

RNG = np.random.default_rng(0)
GREY, COLOUR = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((8, 8), (8, 8, 3)))
NAMES = ("cat", "dog", "7")


def test_one_image_of_every_kind():
    expected = GREY[None, ..., None]
    kinds = [GREY, GREY[..., None], Image.fromarray(GREY), GREY / 255.0, np.float32(GREY / 255)]
    for image in kinds:
        found = inputs.pictures(image, 8, 1)
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.single and found.sides == ((8, 8),) and found.pixels.dtype == np.uint8


def test_several_images_of_every_kind():
    expected = np.stack([COLOUR, COLOUR[::-1]])
    for images in (expected, list(expected), [Image.fromarray(one) for one in expected]):
        found = inputs.pictures(images, 8, 3)
        np.testing.assert_array_equal(found.pixels, expected)
        assert not found.single and found.sides == ((8, 8),) * 2


def test_other_sizes_and_channels_are_made_as_the_data_are():
    tall = RNG.integers(0, 256, (13, 10, 3), dtype=np.uint8)
    found = inputs.pictures(tall, 4, 1)
    np.testing.assert_array_equal(found.pixels, fit(tall[None], 4, 1))
    assert found.sides == ((13, 10),)
    assert inputs.pictures(GREY, 4, 3).pixels.shape == (1, 4, 4, 3)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (inputs.pictures(clear, 4, 3).pixels == 255).all()
    mixed = inputs.pictures([tall, Image.fromarray(GREY)], 4, 3)
    assert mixed.sides == ((13, 10), (8, 8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GREY.astype(np.int32), "image of int32, .* legal: uint8, or float in"),
        (GREY.astype(np.float32), r"image of float32, \d+ to \d+; legal"),
        (np.full((4, 4), np.nan), "image of float64, nan to nan"),
        (np.zeros((4, 4, 2), np.uint8), r"image of shape \(4, 4, 2\); legal"),
        (np.zeros(4), r"image of shape \(4,\); legal"),
        (np.zeros((0, 4)), r"image of shape \(0, 4\)"),
        ([], "there is none"),
        (np.zeros((0, 4, 4, 1)), "there is none"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(UserError, match=message):
        inputs.pictures(image, 4, 1)


def test_a_mask_of_every_kind():
    bools = np.zeros((8, 8), bool)
    bools[2:5, 1:] = True
    images = inputs.pictures([GREY, GREY], 8, 1)
    grey = np.where(bools, 128, 127).astype(np.uint8)
    kinds = [bools, bools.astype(int), bools.astype(np.uint8), bools * 255, grey]
    kinds += [np.where(bools, 0.51, 0.5), Image.fromarray(grey), Image.fromarray(bools)]
    for mask in kinds:
        np.testing.assert_array_equal(inputs.masks(mask, images), [bools, bools])
    each = np.stack([bools, ~bools])
    np.testing.assert_array_equal(inputs.masks(each, images), each)


@given(st.integers(4, 9), st.integers(4, 9), st.integers(1, 3), st.integers(1, 6))
def test_a_mask_is_cropped_like_its_image(height, width, factor, size):
    # The mask lies on the image: what it marks is black there.
    mask = np.zeros((height, width), bool)
    mask[: height // 2 + 1, : width // 2 + 1] = True
    large = mask.repeat(4 * factor, 0).repeat(4 * factor, 1)
    image = np.where(large, 0, 255).astype(np.uint8)
    images = inputs.pictures(image, size, 1)
    for given_mask in (mask, large):
        found = inputs.masks(given_mask, images)[0]
        seen = images.pixels[0, ..., 0]
        # Scaling an image mixes pixels at an edge, which neither answer of the mask is.
        clear = (seen < 20) | (seen > 235)
        np.testing.assert_array_equal(found[clear], seen[clear] < 20)


def test_an_aspect_may_be_off_by_rounding():
    images = inputs.pictures(np.zeros((200, 301), np.uint8), 4, 1)
    assert inputs.masks(np.ones((100, 150), bool), images).all()
    assert inputs.masks(np.ones((100, 151), bool), images).all()
    with pytest.raises(UserError, match="100 x 149 is of another aspect"):
        inputs.masks(np.ones((100, 149), bool), images)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((8, 9), bool), "m: 8 x 9 is of another aspect than the image, 8 x 8; legal"),
        (np.ones((4, 8), bool), "m: 4 x 8 is of another aspect"),
        (np.zeros((8, 8), bool), "m marks nothing of the image"),
        (np.ones((3, 8, 8), bool), "m: 3 masks for 2 images"),
        (np.ones((8, 8, 1, 1)), r"m: float64 of shape \(8, 8, 1, 1\)"),
        (np.ones(8), r"m: float64 of shape \(8,\)"),
        (np.full((8, 8), "x"), "m: <U1 of shape"),
    ],
)
def test_what_is_no_mask(mask, message):
    images = inputs.pictures([GREY, GREY], 8, 1)
    with pytest.raises(UserError, match=message):
        inputs.masks(mask, images, "m")


def test_labels_by_number_and_by_name():
    for given_label, number in ((1, 1), (np.int64(2), 2), ("dog", 1), ("7", 2), ("0", 0)):
        assert inputs.label(given_label, NAMES) == number
    found = inputs.labels(["dog", 0, np.int32(2)], NAMES)
    assert found.tolist() == [1, 0, 2] and found.dtype == np.int32
    assert inputs.labels("cat", NAMES).tolist() == [0]
    assert inputs.labels(np.array([2, 1]), NAMES).tolist() == [2, 1]
    assert inputs.labels(range(3), NAMES).tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrong", [3, -1, "dgo", 1.0, True, None, "99"])
def test_labels_that_do_not_exist(wrong):
    with pytest.raises(UserError, match=r"k=.* legal: 0 to 2, or a name: cat, dog, 7") as raised:
        inputs.label(wrong, NAMES, "k")
    assert ("did you mean 'dog'?" in str(raised.value)) == (wrong == "dgo")
    assert str(raised.value).startswith(f"k={wrong!r} is no class")


def test_no_labels():
    with pytest.raises(UserError, match="labels: there is none"):
        inputs.labels([], NAMES)
