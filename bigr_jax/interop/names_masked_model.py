"""Published names of the tensors of BERT with Hydra layers (github.com/goombalab/hydra)."""

from __future__ import annotations

from collections.abc import Iterator

from bigr_jax.errors import UserError
from bigr_jax.interop import names_hydra
from bigr_jax.interop.layout import Entry
from bigr_jax.models.encoder import MaskedModel
from bigr_jax.nn.hydra import Hydra
from bigr_jax.nn.mixers import make

# The decoder's matrix is the table of the tokens.
ALIASES = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
CARRIED = (r"bert\.embeddings\.position_ids",)

_TRANSFORM = "cls.predictions.transform"


def table(model: MaskedModel) -> list[Entry]:
    """Returns one row for every tensor of a published file and every parameter of `model`.

    Raises UserError where its layers are others than Hydra alone: such files were not published.
    """
    encoder = model.encoder
    options = {"heads": encoder.heads, "dropout": 0.0, "dtype": encoder.dtype, **encoder.options}
    mixer = make(encoder.mixer, name="mixer", **options)
    if not isinstance(mixer, Hydra) or encoder.hidden:
        raise UserError(
            f"encoder.mixer={encoder.mixer!r}, hidden={encoder.hidden}: published weights are of "
            "mixer='hydra', hidden=0"
        )
    rows = list(_ends(model))
    path = ("params", "encoder", "layers")
    for layer in range(encoder.depth):
        name = f"bert.encoder.layer.{layer}.layer"
        rows += names_hydra.rows(mixer, model.width, f"{name}.mixer.", (*path, "mixer"), layer)
        rows += _norm(f"{name}.norm", (*path, "mixer_norm"), layer)
    return rows


def _ends(model: MaskedModel) -> Iterator[Entry]:
    embeddings = "bert.embeddings"
    yield Entry(f"{embeddings}.word_embeddings.weight", ("params", "table"))
    if model.types:
        yield Entry(f"{embeddings}.token_type_embeddings.weight", ("params", "types"))
    if model.positions:
        yield Entry(f"{embeddings}.position_embeddings.weight", ("params", "position"))
    yield from _norm(f"{embeddings}.LayerNorm", ("params", "embed_norm"))
    if model.encoder.norm_first:
        yield from _norm("bert.encoder.norm_f", ("params", "encoder", "norm"))
    yield Entry(f"{_TRANSFORM}.dense.weight", ("params", "head", "kernel"), "linear")
    yield Entry(f"{_TRANSFORM}.dense.bias", ("params", "head", "bias"))
    yield from _norm(f"{_TRANSFORM}.LayerNorm", ("params", "head_norm"))
    yield Entry("cls.predictions.decoder.bias", ("params", "bias"))


def _norm(name: str, path: tuple[str, ...], layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "scale"), layer=layer)
    yield Entry(f"{name}.bias", (*path, "bias"), layer=layer)
