"""The page of `bigr demo`: what it asks of a model, and what a person does in a real browser."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from bigr_jax.demo import painting
from bigr_jax.demo.studio import COMPILING, DRAWING, SEEDS, Shown, Studio, whole
from bigr_jax.errors import UserError
from bigr_jax.model import load

ROOT = Path(__file__).resolve().parents[2]
SIZE = 8


# What is painted.


@pytest.mark.parametrize("size", [8, 32, 100, 256, 512, 700])
def test_the_canvas_is_large_and_loses_nothing(size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (size, size, 1), np.uint8)
    canvas = painting.enlarged(image)
    factor = len(canvas) // size
    assert len(canvas) >= painting.CANVAS > len(canvas) - size or factor == 1
    middle = slice(factor // 2, None, factor)
    for channel in range(3):
        np.testing.assert_array_equal(canvas[middle, middle, channel], image[..., 0])


def test_paint_marks_the_pixels_that_it_mostly_covers() -> None:
    first, second = np.zeros((2, 512, 512, 4), np.uint8)
    first[0:40, 0:64, 3] = 120  # 40 of the 64 rows of pixel (0, 0), half transparent
    second[128:152, 64:128, 3] = 255  # 24 of 64 rows of pixel (2, 1)
    second[192:448, 320:384, 3] = 255
    wanted = np.zeros((SIZE, SIZE), bool)
    wanted[0, 0] = wanted[3:7, 5] = True
    np.testing.assert_array_equal(painting.painted([first, second], SIZE), wanted)
    assert not painting.painted([], SIZE).any()


def test_what_is_marked_is_seen_and_the_rest_is_as_it_was() -> None:
    image = np.full((SIZE, SIZE, 1), 90, np.uint8)
    mask = np.eye(SIZE, dtype=bool)
    shown = painting.tinted(image, mask)
    assert (shown[~mask] == 90).all()
    assert (shown[mask] == np.round(0.4 * 90 + 0.6 * np.asarray(painting.PAINT))).all()
    assert (image == 90).all()


# What the page asks of a model.


class Recorded:
    """Stands in for a model of two classes, and keeps what it was asked for."""

    size, channels, num_classes, class_names = SIZE, 1, 2, ("cat", "dog")
    generator = SimpleNamespace(net=SimpleNamespace(grid=(4, 4), text=()))

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def sample(self, labels: Any, **how: Any) -> np.ndarray:
        self.asked.append(("sample", labels, how))
        return np.zeros((np.size(labels), SIZE, SIZE, 1), np.uint8)

    def inpaint(self, image: Any, mask: Any, **how: Any) -> np.ndarray:
        self.asked.append(("inpaint", mask, how))
        return np.repeat(image[None], how["samples"], axis=0)

    def outpaint(self, image: Any, mask: Any, **how: Any) -> np.ndarray:
        self.asked.append(("outpaint", mask, how))
        return np.repeat(image[None], how["samples"], axis=0)

    def interpolate(self, first: int, second: int, **how: Any) -> np.ndarray:
        self.asked.append(("interpolate", (first, second), how))
        return np.zeros((1, how["steps"], SIZE, SIZE, 1), np.uint8)


@pytest.fixture
def model() -> Recorded:
    return Recorded()


@pytest.fixture
def studio(model: Recorded) -> Studio:
    return Studio(model)  # type: ignore[arg-type]


def corner() -> list[np.ndarray]:
    """Paint over the pixels (0, 0) to (1, 2)."""
    layer = np.zeros((512, 512, 4), np.uint8)
    layer[:128, :192, 3] = 255
    return [layer]


def test_drawing_says_first_that_it_compiles(studio: Studio, model: Recorded) -> None:
    first, then = studio.draw(1, 5.0, 3, {"cfg_scale": 2.0})
    assert first == Shown(None, COMPILING)
    assert then.pictures is not None
    assert [(picture.shape, name) for picture, name in then.pictures] == [((8, 8, 3), "")] * 5
    assert re.fullmatch(r"5 pictures of “dog”, seed 3: \d+\.\d s", then.line)
    assert model.asked == [("sample", [1] * 5, {"seed": 3, "cfg_scale": 2.0})]
    # Five and eight pictures share a program, nine do not, nor does another setting.
    assert next(studio.draw(0, 8, 0, {"cfg_scale": 2.0})).line == DRAWING
    assert next(studio.draw(0, 9, 0, {"cfg_scale": 2.0})).line == COMPILING
    assert next(studio.draw(0, 8, 0, {"cfg_scale": 2.5})).line == COMPILING


def test_one_picture_to_paint_on_is_as_the_model_has_it(studio: Studio, model: Recorded) -> None:
    first, then = studio.one(1, 4)
    assert first == Shown(None, COMPILING)
    assert then.pictures is not None
    assert then.pictures[0][0].shape == (SIZE, SIZE, 1)
    assert model.asked == [("sample", 1, {"seed": 4})]


@pytest.mark.parametrize(("outside", "action"), [(False, "inpaint"), (True, "outpaint")])
def test_editing_shows_before_mask_and_after(
    studio: Studio, model: Recorded, outside: bool, action: str
) -> None:
    image = np.full((SIZE, SIZE, 1), 50, np.uint8)
    _, shown = studio.edit(image, corner(), 1, 2, 7, False, outside)
    assert shown.pictures is not None
    names = [name for _, name in shown.pictures]
    assert names == ["before", "drawn anew", "after 1", "after 2"]
    ((called, mask, how),) = model.asked
    assert (called, how) == (action, {"label": 1, "samples": 2, "seed": 7, "blend": False})
    wanted = np.zeros((SIZE, SIZE), bool)
    wanted[:2, :3] = True
    np.testing.assert_array_equal(mask, wanted)
    marked = shown.pictures[1][0]
    np.testing.assert_array_equal(marked[..., 0] != marked[..., 2], wanted != outside)
    # A token is drawn where its middle, the last of its two pixels, is marked.
    assert shown.line.startswith(f"{15 if outside else 1} of 16 tokens drawn anew as “dog”, seed 7")


def test_editing_without_a_class_asks_for_none(studio: Studio, model: Recorded) -> None:
    _, shown = studio.edit(np.zeros((8, 8, 1), np.uint8), corner(), None, 1, 0, True, False)
    assert model.asked[0][2]["label"] is None
    assert "whatever suits" in shown.line


def test_blending_names_the_shares(studio: Studio, model: Recorded) -> None:
    _, shown = studio.mix(0, 1, 3, 5)
    assert shown.pictures is not None
    assert [name for _, name in shown.pictures] == ["0%", "50%", "100%"]
    assert model.asked == [("interpolate", (0, 1), {"steps": 3, "seed": 5})]


def test_values_that_make_no_sense_are_refused_by_name(studio: Studio, model: Recorded) -> None:
    image = np.zeros((SIZE, SIZE, 1), np.uint8)
    refused = [
        (lambda: studio.draw(None, 4, 0, {}), "class: none is chosen"),
        (lambda: studio.draw(7, 4, 0, {}), "class=7 is no class; legal: 0 to 1"),
        (lambda: studio.draw(0, None, 0, {}), "pictures: nothing; legal: whole numbers from 1 to"),
        (lambda: studio.draw(0, 65, 0, {}), "pictures: 65; legal"),
        (lambda: studio.draw(0, 4, None, {}), "seed: nothing; legal: whole numbers from 0 to"),
        (lambda: studio.draw(0, 4, SEEDS + 1, {}), "seed: 2147483648"),
        (lambda: studio.draw(0, 4, 0, {"cfg_scale": None}), "cfg scale: nothing; give a number"),
        (lambda: studio.edit(None, corner(), 0, 1, 0, True, False), "there is no picture yet"),
        (lambda: studio.edit(image, [], 0, 1, 0, True, False), "nothing is painted yet"),
        (lambda: studio.edit(image, corner(), 0, 0, 0, True, False), "pictures: 0"),
        (lambda: studio.mix(0, None, 3, 0), "second class: none is chosen"),
        (lambda: studio.mix(0, 1, 1, 0), "steps: 1; legal: whole numbers from 2 to"),
        (lambda: studio.one(0, "x"), "seed: x"),
    ]
    for act, text in refused:
        with pytest.raises(UserError, match=re.escape(text)):
            list(act())
    assert model.asked == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.5, True, "3", None, [3]])
def test_a_whole_number_is_one(value: Any) -> None:
    with pytest.raises(UserError, match=r"n: .*; legal: whole numbers from 1 to 9"):
        whole("n", value, 1, 9)


def test_a_model_of_texts_is_refused(model: Recorded) -> None:
    model.generator = SimpleNamespace(net=SimpleNamespace(grid=(4, 4), text=(8, 64)))
    with pytest.raises(UserError, match="texts"):
        Studio(model)  # type: ignore[arg-type]


def test_uploads_are_cropped_and_what_is_no_picture_is_refused(
    studio: Studio, tmp_path: Path
) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (40, 16), (200, 200, 200)).save(path)
    found = studio.opened(str(path))
    assert (found.shape, found.dtype, int(found.min())) == ((8, 8, 1), np.uint8, 200)
    for name, content in (("text.png", b"hello"), ("cut.png", path.read_bytes()[:60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="no picture that can be read"):
            studio.opened(str(tmp_path / name))


# The page in a browser.


class Served(NamedTuple):
    """The command, serving the page."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    def output(self) -> str:
        return (self.folder / "output").read_text("utf-8")


CHROMIUM = shutil.which("chromium") or ""
ABSENT = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
ABSENT += ["chromium"] * (not CHROMIUM)
in_a_browser = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
PATIENCE = 120_000


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def served(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("demo")
    port = free_port()
    command = [sys.executable, "-m", "bigr_jax", "demo", f"--workdir={smoke}", f"--port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=output, stderr=output
        )
    found = Served(process, f"http://127.0.0.1:{port}", folder)
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while found.url not in found.output():
            assert process.poll() is None, found.output()
            assert time.monotonic() < deadline, found.output()
            time.sleep(0.1)
        yield found
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as whom containers run.
        flags = ["--no-sandbox"] * (os.geteuid() == 0)
        found = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page as it opens; at the end, all that it asked for came from its server."""
    context = browser.new_context(viewport={"width": 1280, "height": 1300})
    context.set_default_timeout(PATIENCE)
    asked: list[str] = []
    broken: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    found = context.new_page()
    found.on("pageerror", lambda error: broken.append(str(error)))
    found.goto(served.url)
    found.wait_for_selector("#draw-go")
    yield found
    context.close()
    foreign = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
    assert len(asked) > 10
    assert (foreign, broken) == ([], [])


@pytest.fixture(scope="module")
def trained(smoke: Path) -> Any:
    return load(smoke)


def shown(page: Any, name: str) -> list[np.ndarray]:
    """The pictures of a gallery, as the browser gets them."""
    urls = page.eval_on_selector_all(f"#{name} img", "found => found.map(i => i.src)")
    images = []
    for url in urls:
        reply = page.request.get(url)
        assert reply.headers["content-type"] == "image/png"
        images.append(np.asarray(Image.open(io.BytesIO(reply.body()))))
    loaded = page.eval_on_selector_all(f"#{name} img", "x => x.map(i => i.naturalWidth)")
    assert loaded == [image.shape[1] for image in images]
    return images


def done(page: Any, name: str) -> str:
    """Waits for the line of a gallery that tells the seconds, and returns it."""
    found = page.locator(f"#{name}-line").filter(has_text=re.compile(r": \d+\.\d s\s*$"))
    found.wait_for()
    return str(found.inner_text())


def fill(page: Any, label: str, value: str) -> None:
    """Fills in a number of the open tab."""
    field = page.get_by_role("tabpanel").get_by_label(label, exact=True)
    field.fill(value)
    field.press("Tab")


def choose(page: Any, label: str, name: str) -> None:
    """Chooses from a list of the open tab."""
    page.get_by_role("tabpanel").get_by_label(label, exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def upload(page: Any, path: Path) -> None:
    with page.expect_file_chooser() as chosen:
        page.click("#edit-upload")
    chosen.value.set_files(path)


def refusal(page: Any) -> str:
    toast = page.locator(".toast-body.error").last
    toast.wait_for()
    text = str(toast.inner_text())
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")
    return text


@in_a_browser
def test_draws_what_the_model_draws(page: Any, trained: Any, tmp_path: Path) -> None:
    choose(page, "Class", "3")
    fill(page, "number input for Pictures", "3")
    fill(page, "Seed", "5")
    page.click("#draw-go")
    page.locator("#draw-pictures-line").filter(has_text=COMPILING).wait_for()
    assert done(page, "draw-pictures").startswith("3 pictures of “3”, seed 5: ")
    found = np.stack(shown(page, "draw-pictures"))
    wanted = trained.sample([3, 3, 3], seed=5)
    np.testing.assert_array_equal(found, np.broadcast_to(wanted, found.shape))
    path = tmp_path / "page.png"
    page.screenshot(path=path)
    seen = np.asarray(Image.open(path).convert("RGB"))
    assert seen.shape == (1300, 1280, 3)
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) > 50


@in_a_browser
def test_paints_and_draws_that_part_anew(page: Any, trained: Any) -> None:
    page.get_by_role("tab", name="Edit").click()
    page.click("#edit-go")
    assert "there is no picture yet; upload one, or draw one" in refusal(page)
    choose(page, "Class", "7")
    page.click("#edit-draw")
    assert done(page, "edit-pictures").startswith("A picture of “7”, seed 0: ")
    page.click("#edit-go")
    assert "nothing is painted yet" in refusal(page)
    paint(page, 5)
    page.get_by_label("Clear canvas").click()
    page.click("#edit-go")
    assert "nothing is painted yet" in refusal(page)
    paint(page, 3)
    fill(page, "number input for Results", "2")
    page.click("#edit-go")
    line = done(page, "edit-pictures")
    before, marked, *after = shown(page, "edit-pictures")
    drawn = trained.sample(7)[0]
    np.testing.assert_array_equal(before, np.broadcast_to(drawn, before.shape))
    mask = marked[..., 0] != marked[..., 2]
    # The stroke goes along the fourth row, through the middle.
    assert mask[3, 3:5].all()
    assert not mask[[0, 1, 2, 5, 6, 7]].any()
    assert not mask[:, [0, 7]].any()
    wanted = trained.inpaint(drawn, mask, samples=2)
    assert len(after) == 2
    for image, same in zip(after, wanted, strict=True):
        np.testing.assert_array_equal(image, np.broadcast_to(same, image.shape))
        np.testing.assert_array_equal(image[~mask], before[~mask])
    assert re.match(r"\d+ of 16 tokens drawn anew as whatever suits, seed 0: ", line)


def paint(page: Any, row: int) -> None:
    """Paints a stroke along the middle half of a row of pixels."""
    canvas = page.locator("#edit-canvas canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    box = canvas.bounding_box()
    zoom = float(re.findall(r"(\d+)%", page.locator("#edit-canvas").inner_text())[0]) / 100
    side = zoom * painting.CANVAS
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    y += ((row + 0.5) / SIZE - 0.5) * side
    page.mouse.move(x - side / 4, y)
    page.mouse.down()
    page.mouse.move(x + side / 4, y, steps=8)
    page.mouse.up()


@in_a_browser
def test_uploads_a_picture(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    page.get_by_role("tab", name="Edit").click()
    upload(page, path)
    assert "the file is no picture that can be read" in refusal(page)
    Image.new("RGB", (64, 48), "white").save(path)
    upload(page, path)
    page.locator("#edit-canvas canvas").first.wait_for()
    page.click("#edit-go")
    assert "nothing is painted yet" in refusal(page)


@in_a_browser
def test_blends_two_classes(page: Any, trained: Any) -> None:
    page.get_by_role("tab", name="Blend").click()
    choose(page, "To", "4")
    fill(page, "number input for Steps", "4")
    page.click("#blend-go")
    assert done(page, "blend-pictures").startswith("From “0” to “4”, seed 0: ")
    found = np.stack(shown(page, "blend-pictures"))
    wanted = trained.interpolate(0, 4, steps=4)[0]
    np.testing.assert_array_equal(found, np.broadcast_to(wanted, found.shape))
    captions = page.locator("#blend-pictures .caption-label").all_inner_texts()
    assert captions == ["0%", "33%", "67%", "100%"]


@in_a_browser
def test_broken_values_are_told_and_the_page_goes_on(page: Any) -> None:
    for label, value, text in (
        ("Seed", "-1", "seed: -1; legal: whole numbers from 0 to"),
        ("Seed", "", "seed: nothing; legal: whole numbers from 0 to"),
        ("Seed", "99999999999", "seed: 99999999999; legal"),
    ):
        fill(page, label, value)
        page.click("#draw-go")
        assert text in refusal(page)
    fill(page, "Seed", "1")
    fill(page, "number input for Pictures", "4")
    page.click("#draw-go")
    assert done(page, "draw-pictures").startswith("4 pictures of “0”, seed 1: ")
    assert len(shown(page, "draw-pictures")) == 4


SERVING = """
import sys
from types import SimpleNamespace
from bigr_jax.cli import main
from bigr_jax.demo.server import serve
from bigr_jax.generate.masked import MaskedSampling

generator = SimpleNamespace(net=SimpleNamespace(text=()), sampling=MaskedSampling())
how = dict(size=8, channels=1, num_classes=1, class_names=("cat",), generator=generator)
main._run = lambda argv: serve(SimpleNamespace(**how), "nothing", int(argv[0]))
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.skipif("gradio" in ABSENT, reason="not installed: gradio")
def test_ends_when_it_is_terminated(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVING, str(free_port())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("bigr-demo-*"))
        process.terminate()
        assert process.communicate(timeout=60) == ("", "bigr: interrupted\n")
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("bigr-demo-*"))


@in_a_browser
def test_a_port_that_is_taken_is_named(served: Served, smoke: Path, run_python: Any) -> None:
    port = served.url.rpartition(":")[2]
    again = run_python(["-m", "bigr_jax", "demo", f"--workdir={smoke}", f"--port={port}"])
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"bigr: --port={port} is taken; give another one\n"


@in_a_browser
def test_ends_when_it_is_interrupted(page: Any, served: Served) -> None:
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(30) == 128 + signal.SIGINT
    assert served.output().splitlines() == [
        f"{served.url} draws on this machine; Ctrl-C ends it",
        "bigr: interrupted",
    ]
    assert not list(served.folder.glob("bigr-demo-*"))
