"""Published names of the binary autoencoder's tensors (github.com/haoosz/BiGR)."""

from __future__ import annotations

from collections.abc import Iterator

from bigr_jax.interop.layout import Entry, unused
from bigr_jax.models.binary_autoencoder import (
    BinaryAutoencoder,
    Block,
    decoder_plan,
    encoder_plan,
)

Path = tuple[str, ...]


def table(model: BinaryAutoencoder) -> list[Entry]:
    """Returns one row per tensor of the published file, in its order."""
    width = model.filters * model.multipliers[0]
    return [
        *_stack("encoder.blocks", "encoder", encoder_plan(model), model.channels),
        *_linear("quantize.proj.0", ("params", "quantizer", "proj"), (model.bits, model.embedding)),
        Entry("quantize.embed.weight", ("params", "quantizer", "embed", "kernel")),
        *_stack("generator.blocks", "decoder", decoder_plan(model), model.embedding),
        # A head for a Gaussian likelihood that no published model evaluates.
        unused("generator.logsigma.0.weight", (width, width, 3, 3)),
        unused("generator.logsigma.0.bias", (width,)),
        unused("generator.logsigma.2.weight", (model.channels, width, 1, 1)),
        unused("generator.logsigma.2.bias", (model.channels,)),
    ]


def _stack(torch: str, stack: str, plan: tuple[Block, ...], channels: int) -> Iterator[Entry]:
    for index, block in enumerate(plan):
        yield from _block(f"{torch}.{index}", ("params", stack, block.name), block, channels)
        channels = block.features


def _block(torch: str, path: Path, block: Block, channels: int) -> Iterator[Entry]:
    features = block.features
    if block.kind == "conv":
        yield from _conv(torch, path)
    elif block.kind == "norm":
        yield from _norm(torch, path)
    elif block.kind in ("down", "up"):
        yield from _conv(f"{torch}.conv", (*path, "conv"))
    elif block.kind == "attention":
        yield from _norm(f"{torch}.norm", (*path, "norm"))
        for name in ("q", "k", "v", "proj_out"):
            yield from _linear(f"{torch}.{name}", (*path, name), (features, features))
    else:
        for part in ("1", "2"):
            yield from _norm(f"{torch}.norm{part}", (*path, f"norm{part}"))
            yield from _conv(f"{torch}.conv{part}", (*path, f"conv{part}"))
        if channels != features:
            yield from _conv(f"{torch}.conv_out", (*path, "conv_out"))
        else:
            # The published blocks own this skip even where the width does not change.
            yield unused(f"{torch}.conv_out.weight", (features, features, 1, 1))
            yield unused(f"{torch}.conv_out.bias", (features,))


def _conv(torch: str, path: Path) -> Iterator[Entry]:
    yield Entry(f"{torch}.weight", (*path, "kernel"), "conv")
    yield Entry(f"{torch}.bias", (*path, "bias"))


def _norm(torch: str, path: Path) -> Iterator[Entry]:
    yield Entry(f"{torch}.weight", (*path, "scale"))
    yield Entry(f"{torch}.bias", (*path, "bias"))


def _linear(torch: str, path: Path, shape: tuple[int, int]) -> Iterator[Entry]:
    """A linear map per position, published as a 1x1 convolution."""
    yield Entry(f"{torch}.weight", (*path, "kernel"), "linear", shape=(*shape, 1, 1))
    yield Entry(f"{torch}.bias", (*path, "bias"))
