"""The page: three tabs, each a form at the left and pictures at the right."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np

from bigr_jax.demo import painting
from bigr_jax.demo.studio import MOST, Shown, Studio
from bigr_jax.errors import UserError
from bigr_jax.model import Model

# Fonts that every system has: a page that is shown without a network fetches none.
FONTS = ("system-ui", "sans-serif")
THEME = gr.themes.Default(
    primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=("monospace",)
)
CSS = """
.gradio-container > main { max-width: 1240px !important; margin: 0 auto !important; }
.pixelated img { image-rendering: pixelated; }
.pictures .grid-wrap { max-height: none; min-height: 240px; }
.line { min-height: 1.6em; }
"""
ORDERS = (("surest first", "entropy"), ("random", "random"), ("row by row", "raster"))
WHATEVER = ("whatever suits", -1)
PAINTED, REST = "what I paint", "all but what I paint"
SMOOTH_FROM = 128
# The model is one: what the page asks for is done one after another.
QUEUED: dict[str, Any] = {
    "concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private",
}  # fmt: skip


def build(model: Model, title: str) -> gr.Blocks:
    """Returns the page of a model, to launch with THEME and CSS.

    title  where the model is from
    """
    studio = Studio(model)
    with gr.Blocks(analytics_enabled=False, title=f"BiGR: {title}", fill_width=True) as page:
        gr.Markdown(_heading(model, title))
        with gr.Tab("Draw", id="draw"):
            _draw_tab(studio)
        with gr.Tab("Edit", id="edit"):
            _edit_tab(studio)
        with gr.Tab("Blend", id="blend"):
            _blend_tab(studio)
    return page


def _heading(model: Model, title: str) -> str:
    size, kind = model.size, "grey" if model.channels == 1 else "coloured"
    return (
        f"# BiGR · {html.escape(title)}\n"
        f"{model.num_classes} classes, {kind} pictures of {size} × {size} pixels. "
        "Everything is computed on this machine and stays there."
    )


def _draw_tab(studio: Studio) -> None:
    usual = studio.model.generator.sampling
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            label = _classes(studio.model, "Class", 0)
            count = gr.Slider(1, MOST, value=16, step=1, label="Pictures")
            seed = _seed()
            button = gr.Button("Draw", variant="primary", elem_id="draw-go")
            with gr.Accordion("How they are drawn", open=True):
                guidance = gr.Slider(
                    1, 10, value=usual.cfg_scale, step=0.1, label="Guidance",
                    info="to the class; 1 is none",
                )  # fmt: skip
                iterations = gr.Slider(
                    1, 64, value=usual.iterations, step=1, label="Iterations",
                    info="passes to a picture",
                )  # fmt: skip
                temperature = gr.Slider(
                    0.1, 3, value=usual.temperature, step=0.05, label="Temperature",
                    info="low: plain, high: varied",
                )  # fmt: skip
                gumbel = gr.Slider(
                    0, 5, value=usual.gumbel_temperature, step=0.01, label="Gumbel noise",
                    info="on the order; 0 is none",
                )  # fmt: skip
                order = gr.Dropdown(list(ORDERS), value=usual.order, label="Order of the tokens")
        with gr.Column(scale=2, min_width=420):
            gallery, line = _gallery(studio.model, "Pictures", "draw-pictures", 4)

    def draw(label: Any, count: Any, seed: Any, *values: Any) -> Iterator[Shown]:
        names = ("cfg_scale", "iterations", "temperature", "gumbel_temperature", "order")
        return studio.draw(label, count, seed, dict(zip(names, values, strict=True)))

    knobs = [guidance, iterations, temperature, gumbel, order]
    button.click(
        _shown(draw),
        [label, count, seed, *knobs],
        [gallery, line],
        show_progress_on=gallery,
        **QUEUED,
    )


def _edit_tab(studio: Studio) -> None:
    model = studio.model
    side = painting.enlargement(model.size) * model.size
    picture = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            gr.Markdown("**1. Take a picture**")
            with gr.Row(equal_height=True):
                drawn = _classes(model, "Class", 0)
                draw_one = gr.Button("Draw one", elem_id="edit-draw")
            upload = gr.UploadButton("… or upload one", file_types=["image"], elem_id="edit-upload")
            gr.Markdown("**2. Paint over a part of it** →\n\n**3. Draw that part anew**")
            outside = gr.Radio([PAINTED, REST], value=PAINTED, label="Draw anew")
            label = _classes(model, "As", -1, WHATEVER)
            count = gr.Slider(1, 16, value=4, step=1, label="Results")
            seed = _seed()
            blend = gr.Checkbox(
                True, label="Blend", info="all else stays as it is, to the pixel, without a seam"
            )
            button = gr.Button("Draw anew", variant="primary", elem_id="edit-go")
        with gr.Column(scale=2, min_width=560):
            editor = gr.ImageEditor(
                type="numpy", image_mode="RGBA", sources=(), transforms=(), layers=False,
                brush=_brush(side), eraser=gr.Eraser(default_size=side // 16),
                label="Picture to paint on", buttons=[], elem_id="edit-canvas",
                canvas_size=(side, side), height=side + 110,
                placeholder="Take a picture first", elem_classes=_look(model),
            )  # fmt: skip
    gallery, line = _gallery(model, "Before, what is drawn anew, after", "edit-pictures", 6)

    def canvas(image: np.ndarray | None) -> Any:
        if image is None:
            return None
        return {"background": painting.enlarged(image), "layers": [], "composite": None}

    def one(label: Any, seed: Any) -> Iterator[tuple[Any, ...]]:
        for shown in studio.one(label, seed):
            if shown.pictures is None:
                yield gr.skip(), gr.skip(), shown.line
            else:
                image = shown.pictures[0][0]
                yield image, canvas(image), shown.line

    def opened(path: str) -> Iterator[tuple[Any, ...]]:
        image = studio.opened(path)
        yield image, canvas(image), ""

    def edit(image: Any, over: Any, label: Any, count: Any, seed: Any, *how: Any) -> Any:
        layers = over["layers"] if over else []
        asked = None if label == WHATEVER[1] else label
        return studio.edit(image, layers, asked, count, seed, how[0], how[1] == REST)

    taken = [picture, editor, line]
    draw_one.click(_told(one, 3), [drawn, seed], taken, show_progress_on=editor, **QUEUED)
    upload.upload(_told(opened, 3), upload, taken, show_progress_on=editor, **QUEUED)
    # Its button clears the picture too; only the paint is to go.
    editor.clear(canvas, picture, editor, **QUEUED)
    asked = [picture, editor, label, count, seed, blend, outside]
    button.click(_shown(edit), asked, [gallery, line], show_progress_on=gallery, **QUEUED)


def _blend_tab(studio: Studio) -> None:
    model = studio.model
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            first = _classes(model, "From", 0)
            second = _classes(model, "To", min(1, model.num_classes - 1))
            steps = gr.Slider(2, 16, value=8, step=1, label="Steps")
            seed = _seed()
            button = gr.Button("Blend", variant="primary", elem_id="blend-go")
        with gr.Column(scale=2, min_width=420):
            gallery, line = _gallery(model, "Share of the second class", "blend-pictures", 4)
    button.click(
        _shown(studio.mix),
        [first, second, steps, seed],
        [gallery, line],
        show_progress_on=gallery,
        **QUEUED,
    )


def _classes(model: Model, label: str, value: int, *more: tuple[str, int]) -> gr.Dropdown:
    choices = [*more, *((name, number) for number, name in enumerate(model.class_names))]
    return gr.Dropdown(choices, value=value, label=label)


def _seed() -> gr.Number:
    return gr.Number(0, label="Seed", info="the same number draws the same pictures")


def _brush(side: int) -> gr.Brush:
    colour = ("rgb({}, {}, {})".format(*painting.PAINT), 0.7)
    return gr.Brush(
        default_size=side // 16, colors=[colour], default_color=colour, color_mode="fixed"
    )


def _gallery(model: Model, label: str, name: str, columns: int) -> tuple[gr.Gallery, gr.Markdown]:
    line = gr.Markdown("", elem_id=f"{name}-line", elem_classes=["line"])
    # PNG, so that what is shown and saved is the picture to the bit.
    gallery = gr.Gallery(
        label=label, show_label=False, format="png", columns=columns, height="auto",
        object_fit="contain", interactive=False, elem_id=name, buttons=["download"],
        elem_classes=["pictures", *_look(model)],
    )  # fmt: skip
    return gallery, line


def _look(model: Model) -> list[str]:
    return ["pixelated"] if model.size < SMOOTH_FROM else []


def _shown(act: Callable[..., Iterator[Shown]]) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Makes what a studio yields the values of a gallery and its line."""

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        for shown in act(*values):
            yield gr.skip() if shown.pictures is None else shown.pictures, shown.line

    return _told(run, 2)


def _told(
    act: Callable[..., Iterator[tuple[Any, ...]]], outputs: int
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Shows a user's mistake as a message, and empties the line, the last of the outputs."""

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from act(*values)
        except UserError as error:
            yield (*[gr.skip()] * (outputs - 1), "")
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return run
