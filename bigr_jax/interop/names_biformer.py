"""Published names of the tensors of BiFormer (github.com/rayleizhu/BiFormer, T, S and B)."""

from __future__ import annotations

from collections.abc import Iterator

from bigr_jax.errors import UserError
from bigr_jax.interop.layout import Entry
from bigr_jax.models.biformer import BiFormer, Stages

Path = tuple[str, ...]

# Counters of batches seen, which nothing here reads.
CARRIED = (r".+\.num_batches_tracked",)


def table(model: Stages) -> list[Entry]:
    """Returns one row for every tensor of a published file and every parameter of `model`.

    A pyramid's own norms, `extra_norms.STAGE`, are named as in the published code for dense
    prediction. Raises UserError for kinds of attention and beginnings that were not published.
    """
    if model.attention != "routed" or model.patches or model.stem != 4:
        raise UserError(
            f"attention={model.attention!r}, patches={model.patches}, stem={model.stem}: published "
            "weights are of attention='routed', patches=False, stem=4"
        )
    rows = list(_halved(len(model.depths)))
    for stage, depth in enumerate(model.depths):
        for block in range(depth):
            rows += _block(model, stage, block)
    if isinstance(model, BiFormer):
        rows += _norm("norm", ("norm",))
        rows += _pair("head", ("head",), "linear")
    else:
        for stage in range(len(model.depths)):
            rows += _pair(f"extra_norms.{stage}", (f"map_norm_{stage}",), "scale")
    return rows


def _halved(stages: int) -> Iterator[Entry]:
    yield from _pair("downsample_layers.0.0", ("stem",), "conv")
    yield from _norm("downsample_layers.0.1", ("stem_norm",))
    for stage in range(stages):
        first = 0 if stage else 3
        at = f"downsample_layers.{stage}"
        yield from _pair(f"{at}.{first}", (f"down_{stage}",), "conv")
        yield from _norm(f"{at}.{first + 1}", (f"norm_{stage}",))


def _block(model: Stages, stage: int, layer: int) -> Iterator[Entry]:
    torch, at = f"stages.{stage}.{layer}", (f"stage_{stage}",)
    own, width = (*at, "attention"), model.widths[stage]
    yield from _pair(f"{torch}.pos_embed", (*at, "positions"), "conv", layer)
    yield from _pair(f"{torch}.norm1", (*at, "attention_norm"), "scale", layer)
    where, shape = ("params", *own, "qkv"), (3 * width, width)
    # The dense layers have other names, and no bias.
    qkv, out = ("qkv.qkv", "wo") if model.topk[stage] else ("qkv", "proj")
    yield Entry(f"{torch}.attn.{qkv}.weight", (*where, "kernel"), "linear", layer, shape)
    if model.topk[stage]:
        yield Entry(f"{torch}.attn.{qkv}.bias", (*where, "bias"), layer=layer, shape=shape[:1])
    yield from _pair(f"{torch}.attn.{out}", (*own, "out"), "linear", layer)
    yield from _pair(f"{torch}.attn.lepe", (*own, "local"), "conv", layer)
    yield from _pair(f"{torch}.norm2", (*at, "mlp_norm"), "scale", layer)
    yield from _pair(f"{torch}.mlp.0", (*at, "mlp", "up"), "linear", layer)
    yield from _pair(f"{torch}.mlp.3", (*at, "mlp", "down"), "linear", layer)


def _pair(torch: str, path: Path, kind: str, layer: int | None = None) -> Iterator[Entry]:
    """Weight and bias of one module; those of norms are a scale and a bias."""
    name, layout = ("scale", "same") if kind == "scale" else ("kernel", kind)
    yield Entry(f"{torch}.weight", ("params", *path, name), layout, layer)
    yield Entry(f"{torch}.bias", ("params", *path, "bias"), layer=layer)


def _norm(torch: str, path: Path) -> Iterator[Entry]:
    yield from _pair(torch, path, "scale")
    yield Entry(f"{torch}.running_mean", ("batch_stats", *path, "mean"))
    yield Entry(f"{torch}.running_var", ("batch_stats", *path, "var"))
