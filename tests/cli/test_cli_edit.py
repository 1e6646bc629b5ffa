"""`bigr edit`: what it asks of the model, what it writes, and what it refuses."""

from __future__ import annotations

import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import bigr_jax.model
import bigr_jax.train.run
from bigr_jax import pictures
from bigr_jax.cli import edit
from bigr_jax.cli.command import help_text, parse
from bigr_jax.errors import UserError
from bigr_jax.generate.masked import MaskedSampling

SIZE = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
MASK = np.zeros((SIZE, SIZE), bool)
MASK[2:6, 1:4] = True
BOX = "--box=2,1,4,3"


class Drawing:
    """Stands for a model: keeps what is asked of it, and draws numbers."""

    size, channels, class_names = SIZE, 1, ("cat", "dog", "owl")
    generator = SimpleNamespace(sampling=MaskedSampling())

    def __init__(self):
        self.asked = []

    def at_size(self, size):
        self.size = size
        return self

    def drawn(self, name, *given, samples=1, steps=1, **how):
        self.asked.append((name, given, {**how, "samples": samples}))
        levels = np.arange(samples * steps, dtype=np.uint8)[:, None, None, None]
        return np.broadcast_to(levels, (samples * steps, self.size, self.size, 1))

    def inpaint(self, image, mask, **how):
        return self.drawn("inpaint", image, mask, **how)

    def outpaint(self, image, mask, **how):
        return self.drawn("outpaint", image, mask, **how)

    def enrich(self, image, **how):
        return self.drawn("enrich", image, **how)

    def interpolate(self, *ends, steps, **how):
        found = self.drawn("interpolate", *ends, steps=steps, **how)
        return found.reshape(-1, steps, SIZE, SIZE, 1)


@pytest.fixture
def model(monkeypatch):
    """A stand-in for the model of every work directory, with a test split of three images."""
    split = SimpleNamespace(
        __len__=lambda: 3, gather=lambda rows: {"image": np.stack([PIXELS] * len(rows))}
    )
    source = type("Split", (), {"__len__": lambda self: 3, "gather": staticmethod(split.gather)})()
    found = Drawing()
    monkeypatch.setattr(bigr_jax.model, "from_run", lambda run: found)
    run = SimpleNamespace(sources={"test": source})
    monkeypatch.setattr(bigr_jax.train.run, "opened", lambda workdir: run)
    return found


@pytest.fixture
def files(tmp_path):
    """A folder with in.png and mask.png."""
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "in.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    return tmp_path


def call(*argv):
    edit.run(parse(edit.COMMAND, argv))


def given(files, action, *argv):
    call(action, f"--workdir={files}", f"--image={files}/in.png", *argv)


def picture(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("action", ["inpaint", "outpaint"])
def test_results_and_strip(model, files, capsys, action):
    given(files, action, f"--mask={files}/mask.png", "--samples=3", "--seed=4")
    ((name, (image, mask), how),) = model.asked
    assert (name, how) == (action, {"samples": 3, "seed": 4})
    np.testing.assert_array_equal(image, PIXELS)
    np.testing.assert_array_equal(mask, MASK)
    paths = [f"{files}/{action}-seed4.png", f"{files}/{action}-seed4-strip.png"]
    assert capsys.readouterr().out.split() == paths
    drawn = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None, None], (3, SIZE, SIZE, 1))
    np.testing.assert_array_equal(picture(paths[0]), pictures.grid(drawn, 3))
    shown = np.stack([PIXELS, np.uint8(255) * MASK[..., None], drawn[0]])
    np.testing.assert_array_equal(picture(paths[1]), pictures.grid(shown, 3))


def test_another_size(model, files):
    given(files, "enrich", f"--size={2 * SIZE}", "--samples=1")
    expected = pictures.grid(np.zeros((1, 2 * SIZE, 2 * SIZE, 1)), 1)
    assert picture(files / "enrich-seed0.png").shape == expected.shape


def test_a_box_is_a_mask_and_a_label_a_number(model, files, capsys):
    out = ["--out", f"{files}/new/a.png", f"--strip={files}/b.png"]
    given(files, "edit", BOX, "--label=dog", "--config.sample.cfg_scale=4", *out)
    ((name, (image, mask), how),) = model.asked
    np.testing.assert_array_equal(image, PIXELS)
    np.testing.assert_array_equal(mask, MASK)
    expected = {"samples": 8, "seed": 0, "label": 1, "cfg_scale": 4.0}
    assert (name, how) == ("inpaint", expected) and type(how["cfg_scale"]) is float
    assert capsys.readouterr().out.split() == [f"{files}/new/a.png", f"{files}/b.png"]


def test_images_of_the_test_split(model, files):
    call("inpaint", f"--workdir={files}", "--image=test:2", BOX)
    np.testing.assert_array_equal(model.asked[0][1][0], PIXELS)
    with pytest.raises(UserError, match="--image=test:3; legal: a file, or test:0 to test:2"):
        call("inpaint", f"--workdir={files}", "--image=test:3", BOX)
    with pytest.raises(UserError, match="--image=test:x; legal"):
        call("inpaint", f"--workdir={files}", "--image=test:x", BOX)


def test_enriching_has_no_mask(model, files):
    given(files, "enrich", "--samples=2", "--config.sample.iterations=3")
    ((name, (image,), how),) = model.asked
    assert (name, how) == ("enrich", {"samples": 2, "seed": 0, "iterations": 3})
    assert image.size == (SIZE, SIZE)
    drawn = np.zeros((1, SIZE, SIZE, 1), np.uint8)
    shown = np.concatenate([PIXELS[None], drawn])
    strip = picture(files / "enrich-seed0-strip.png")
    np.testing.assert_array_equal(strip, pictures.grid(shown, 2))


def test_interpolating_takes_two_classes_and_no_image(model, files, capsys):
    call("interpolate", f"--workdir={files}", "--label=cat, 2", "--steps=5", "--samples=2")
    assert model.asked == [("interpolate", (0, 2), {"samples": 2, "seed": 0})]
    assert capsys.readouterr().out.split() == [f"{files}/interpolate-seed0.png"]
    drawn = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 8, 8, 1))
    found = picture(files / "interpolate-seed0.png")
    np.testing.assert_array_equal(found, pictures.grid(drawn, 5))
    call("interpolate", f"--workdir={files}", "--label=0,1")
    assert model.asked[1][2]["samples"] == 1


MISTAKES = [
    ([], "bigr edit needs an action: inpaint, outpaint, edit, enrich, interpolate"),
    (["inpant"], "action='inpant' is not known (did you mean 'inpaint'?)"),
    (["inpaint"], "--image is missing, which bigr edit inpaint needs"),
    (["interpolate"], "--label is missing, which bigr edit interpolate needs"),
    (["inpaint", "--image=IN"], "bigr edit inpaint needs one of --mask=MASK.png and --box=top,"),
    (["inpaint", "--image=IN", "--mask=MASK", BOX], "bigr edit inpaint needs one of --mask"),
    (["edit", "--image=IN", BOX], "--label is missing, the class that the marked part becomes"),
    (["enrich", "--image=IN", BOX], "bigr edit enrich takes no --box"),
    (["interpolate", "--label=0,1", "--image=IN"], "bigr edit interpolate takes no --image"),
    (["inpaint", "--image=IN", BOX, "--steps=3"], "bigr edit inpaint takes no --steps"),
    (["inpaint", "--image=none.png", BOX], "--image=none.png: No such file or directory"),
    (["inpaint", "--image=TEXT", BOX], "--image=TEXT: it is no image that can be read"),
    (["inpaint", "--image=CUT", BOX], "--image=CUT: it is no image that can be read"),
    (["inpaint", "--image=IN", "--mask=TEXT"], "--mask=TEXT: it is no image that can be read"),
    (["inpaint", "--image=IN", "--mask=WIDE"], "--mask=WIDE: 8 x 12 is of another aspect than"),
    (["inpaint", "--image=IN", "--mask=BLACK"], "--mask=BLACK marks nothing of the image; white"),
    (["inpaint", "--image=IN", "--box=0,0,9,1"], "--box=0,0,9,1 is empty or not within the image"),
    (["inpaint", "--image=IN", "--box=0,0,0,1"], "--box=0,0,0,1 is empty or not within"),
    (["inpaint", "--image=IN", "--box=1,2"], "--box=1,2 is not top,left,height,width, e.g. 0,0,"),
    (["inpaint", "--image=IN", "--box=a,0,1,1"], "--box=a,0,1,1 is not top,left,height,width"),
    (["edit", "--image=IN", BOX, "--label=dgo"], "--label='dgo' is no class (did you mean 'dog'?)"),
    (["edit", "--image=IN", BOX, "--label=3"], "--label='3' is no class; legal: 0 to 2, or a name"),
    (["interpolate", "--label=cat"], "--label=cat is not two classes, e.g. --label=3,5"),
    (["enrich", "--image=IN", "--config.sample.cfg=3"], "config.sample.cfg is not a key"),
    (["enrich", "--image=IN", "--config.sample.iterations=x"], "config.sample.iterations: 'x' "),
    (["enrich", "--image=IN", "--config.model.depth=3"], "config.model is not a key"),
    (["enrich", "--image=IN", "--out=DIR"], "DIR is a folder; legal: the PNG to write"),
    (["enrich", "--image=IN", "--out=a.png", "--strip=./a.png"], "--out and --strip are both a."),
    (["enrich", "--image=IN", "--out=IN/a.png"], "IN/a.png cannot be written: "),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_mistakes_are_one_line_and_nothing_is_written(model, files, capsys, argv, message):
    Image.fromarray(np.ones((8, 12), bool)).save(files / "wide.png")
    Image.fromarray(np.zeros((8, 8), bool)).save(files / "black.png")
    (files / "text.png").write_text("no image")
    (files / "cut.png").write_bytes((files / "in.png").read_bytes()[:60])
    names = ["in", "mask", "wide", "black", "text", "cut"]
    paths = {name.upper(): f"{files}/{name}.png" for name in names} | {"DIR": str(files)}

    def told(text):
        return re.sub(
            r"\b(IN|MASK|WIDE|BLACK|TEXT|CUT|DIR)\b(?!\.png)", lambda m: paths[m[0]], text
        )

    before = sorted(os.listdir(files))
    with pytest.raises(UserError) as raised:
        call(*map(told, argv), f"--workdir={files}")
    assert str(raised.value).startswith(told(message))
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(files)) == before
    assert capsys.readouterr().out == ""


def test_a_work_directory_is_needed(files):
    with pytest.raises(UserError, match="--workdir is missing"):
        call("enrich", f"--image={files}/in.png")
    with pytest.raises(UserError, match="is no work directory of `bigr train`"):
        given(files, "enrich")


def test_help():
    text = help_text(edit.COMMAND)
    assert text.startswith("usage: bigr edit ACTION") and "\nexamples:\n  bigr edit" in text
    assert max(map(len, text.splitlines())) <= 100
    for action in edit.ACTIONS:
        assert action in edit.COMMAND.summary


def test_a_trained_run(smoke, files, capsys):
    out, quick = files / "out.png", ("--config.sample.iterations=1", "--samples=2")
    steps = "--config.sample.denoise_steps=1"
    image = f"--image={files}/in.png"
    call("inpaint", f"--workdir={smoke}", image, BOX, f"--out={out}", steps, *quick)
    assert capsys.readouterr().out.split() == [str(out), f"{files}/out-strip.png"]
    model = bigr_jax.model.load(smoke)
    found = model.inpaint(PIXELS, MASK, samples=2, iterations=1, denoise_steps=1)
    np.testing.assert_array_equal(picture(out), pictures.grid(found, 2))


def test_an_unfinished_stage_is_named(smoke, files):
    workdir = shutil.copytree(smoke, files / "run")
    shutil.rmtree(workdir / "generator" / "checkpoints")
    with pytest.raises(UserError, match=r"stage 'generator' is at step 0 of 20 .*train it first"):
        call("enrich", f"--workdir={workdir}", f"--image={files}/in.png")
    assert not list(workdir.glob("enrich*"))
