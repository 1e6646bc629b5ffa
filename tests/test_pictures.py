"""Grids: geometry, clipping, names, whole files."""

import os

import numpy as np
import pytest
from PIL import Image

from bigr_jax import pictures


def test_tiles_stand_in_rows_with_gaps():
    images = np.stack([np.full((4, 4, 1), v) for v in (0.0, 0.25, 0.5)])
    sheet = pictures.grid(images, 2, scale=1, gap=1)
    assert sheet.shape == (11, 11, 3) and sheet.dtype == np.uint8
    assert sheet[1, 1, 0] == 0 and sheet[1, 6, 0] == 64 and sheet[6, 1, 0] == 128
    assert (sheet[6, 6] == 255).all() and (sheet[0] == 255).all()


def test_floats_are_clipped_and_rounded():
    found = pictures.to_uint8(np.array([-1.0, 0.5, 0.999, 2.0]))
    assert found.tolist() == [0, 128, 255, 255]


def test_colour_stays_and_scale_enlarges():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (9, 8, 7)
    sheet = pictures.grid(image, 1, scale=3, gap=0)
    assert sheet.shape == (6, 6, 3) and (sheet[:3, :3] == (9, 8, 7)).all()


def test_names_stand_left_of_their_row():
    images = np.zeros((2, 32, 32, 1))
    plain, named = pictures.grid(images, 1), pictures.grid(images, 1, names=("cat", "dog"))
    margin = named.shape[1] - plain.shape[1]
    assert margin > 10 and named.shape[0] == plain.shape[0]
    rows = (named[:, :margin] < 200).any(axis=(1, 2)).nonzero()[0]
    middle = named.shape[0] // 2
    assert (rows < middle).any() and (rows > middle).any()


def test_png_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.png"
    pictures.save_png(path, np.zeros((2, 3, 3), np.uint8))
    assert Image.open(path).size == (3, 2) and os.listdir(path.parent) == ["a.png"]
    with pytest.raises((TypeError, ValueError)):
        pictures.save_png(path, np.zeros((2, 2, 2, 2, 2), np.uint8))
    assert Image.open(path).size == (3, 2)


def test_a_region_and_those_that_it_attends_to_are_marked():
    image = np.full((6, 6, 1), 100, np.uint8)
    picture = pictures.marked(image, 3, 0, [4, 5])
    assert picture.shape == (24, 24, 3)
    white, orange = ((picture == colour).all(-1) for colour in ((255, 255, 255), (255, 150, 0)))
    assert white[:8, :8].sum() == 64 - 4 and white.sum() == 60
    assert orange[8:16, 8:].sum() == 2 * 60 and orange.sum() == 120
    inner = picture[3:5, 3:5], picture[11:13, 11:13], picture[19:21, 19:21]
    assert [part.mean() for part in inner] == [100, 100, 45]
