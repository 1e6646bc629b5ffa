"""The published names of BiGR's tensors (files of haoosz/BiGR, part "ema")."""

from __future__ import annotations

from collections.abc import Iterator

from bigr_jax.interop.layout import Entry
from bigr_jax.models.bigr import BiGR

# The published files hold the denoiser twice, and the constants of its noise schedule.
ALIASES = {"diffusion_processor._denoise_fn.": "denoise_mlp."}
CARRIED = (r"diffusion_processor\.scheduler\.(k_final|b_final|beta|cumbeta)",)

_DENOISER = {
    "x_embedder": "bits_in",
    "c_embedder": "condition_in",
    "t_embedder.mlp.0": "time_in",
    "t_embedder.mlp.2": "time_out",
    "final_layer.linear": "out",
    "final_layer.adaLN_modulation.1": "out_modulation",
}
_DENOISER_BLOCK = {"mlp.0": "mlp_in", "mlp.2": "mlp_out", "adaLN_modulation.1": "modulation"}


def table(model: BiGR) -> list[Entry]:
    """Returns one row for every tensor of a published file and every parameter of `model`."""
    entries = [*_ends(model), *_denoiser(model.head_blocks)]
    for layer in range(model.depth):
        entries += _layer(model, layer)
    return entries


def _ends(model: BiGR) -> Iterator[Entry]:
    width = model.width
    yield Entry("mask_tok", ("params", "mask_token"), shape=(1, width))
    position = (1, model.length, width)
    yield Entry("diffusion_pos_embed_learned", ("params", "position"), shape=position)
    yield Entry("cls_embedding.embedding_table.weight", ("params", "classes", "table"))
    yield from _linear("tok_embeddings", ("embed",))
    yield Entry("norm.weight", ("params", "norm", "scale"))
    if model.adaln:
        path = ("params", "modulation", "linear")
        yield Entry("adaLN.1.weight", (*path, "kernel"), "linear", shape=(6 * width, width))
        yield Entry("adaLN.1.bias", (*path, "bias"), shape=(6 * width,))


def _layer(model: BiGR, layer: int) -> Iterator[Entry]:
    path, prefix, width = ("params", "layers"), f"layers.{layer}", model.width
    mlp = f"{prefix}.feed_forward"
    if model.adaln:
        offset = (*path, "modulation", "offset")
        yield Entry(f"{prefix}.ada_gss", offset, layer=layer, shape=(1, 1, 6, width))
    yield Entry(
        f"{prefix}.attention.wqkv.weight",
        (*path, "mixer", "qkv", "kernel"),
        "linear",
        layer,
        (3 * width, width),
    )
    yield Entry(
        f"{prefix}.attention.wo.weight",
        (*path, "mixer", "out", "kernel"),
        "linear",
        layer,
        (width, width),
    )
    for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        yield Entry(f"{mlp}.{theirs}.weight", (*path, "mlp", ours, "kernel"), "linear", layer)
    for theirs, ours in (("attention_norm", "mixer_norm"), ("ffn_norm", "mlp_norm")):
        yield Entry(f"{prefix}.{theirs}.weight", (*path, ours, "scale"), layer=layer)


def _denoiser(blocks: int) -> Iterator[Entry]:
    for theirs, ours in _DENOISER.items():
        yield from _linear(f"denoise_mlp.{theirs}", ("denoiser", ours))
    for block in range(blocks):
        for theirs, ours in _DENOISER_BLOCK.items():
            name = f"denoise_mlp.blocks.{block}.{theirs}"
            yield from _linear(name, ("denoiser", "layers", ours), block)


def _linear(name: str, path: tuple[str, ...], layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", ("params", *path, "kernel"), "linear", layer)
    yield Entry(f"{name}.bias", ("params", *path, "bias"), layer=layer)
