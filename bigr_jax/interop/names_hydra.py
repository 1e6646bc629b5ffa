"""Published names of the tensors of a Hydra layer (github.com/goombalab/hydra)."""

from __future__ import annotations

from collections.abc import Iterator

from bigr_jax.interop.layout import Entry
from bigr_jax.nn.hydra import Hydra

Path = tuple[str, ...]


def table(model: Hydra, width: int) -> list[Entry]:
    """Returns one row for every parameter of a layer whose input has `width` channels."""
    return list(rows(model, width))


def rows(
    model: Hydra,
    width: int,
    torch: str = "",
    path: Path = ("params",),
    layer: int | None = None,
) -> Iterator[Entry]:
    """Yields the same for a layer within a network: `torch` is what the published names begin with
    ("encoder.layer.0."), `path` where its parameters lie, `layer` its place along their first axis.
    """
    heads = model.heads(width)
    inner, pairs = heads * model.head_dim, 4 * model.groups * model.state
    for name, size in {"gate": inner, "x": inner, "BC": pairs, "dt": 2 * heads}.items():
        where = (*path, name)
        yield Entry(f"{torch}in_proj.weight", (*where, "kernel"), "linear", layer, (size, width))
        if model.bias:
            yield Entry(f"{torch}in_proj.bias", (*where, "bias"), layer=layer, shape=(size,))
    for name, size in {"conv_x": inner, "conv_BC": pairs}.items():
        where, taps = (*path, name), (size, 1, model.conv)
        yield Entry(f"{torch}conv1d.weight", (*where, "kernel"), "linear", layer, taps)
        yield Entry(f"{torch}conv1d.bias", (*where, "bias"), layer=layer, shape=(size,))
    for name in ("dt_bias", "A_log", "D"):
        yield Entry(f"{torch}{name}", (*path, name), layer=layer)
    skip = (heads, inner)
    yield Entry(f"{torch}fc_D.weight", (*path, "skip", "kernel"), "linear", layer, skip)
    yield Entry(f"{torch}norm.weight", (*path, "norm", "scale"), layer=layer)
    yield Entry(f"{torch}out_proj.weight", (*path, "out", "kernel"), "linear", layer)
    if model.bias:
        yield Entry(f"{torch}out_proj.bias", (*path, "out", "bias"), layer=layer)
    if model.learn_start:
        yield Entry(f"{torch}init_states", (*path, "start"), layer=layer)
