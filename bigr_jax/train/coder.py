"""The tokenizer of a run as a coder of images, and whether stored codes are its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.api import Array, Given, Method
from bigr_jax.data import Source
from bigr_jax.data.augment import to_float
from bigr_jax.data.codes import CodesSource
from bigr_jax.errors import UserError
from bigr_jax.gather import on_host
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.ops.packing import pack_bits
from bigr_jax.train import patterns

STAGE = "tokenizer"


def coder(
    net: BinaryAutoencoder, draws: int, flip: bool, seed: int
) -> Callable[[Any, Array, Array], Array]:
    """Returns the function (params, images, indices) -> packed codes of all copies.

    params: of `net`; images: uint8 [B, H, W, C]; indices: int32 [B], the examples' numbers
    -> uint8 [B, copies, ceil(N K / 8)], see `data.code_files`
    """

    def uniforms(index: Array, copy: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), copy)
        return jax.random.uniform(key, (net.grid, net.grid, net.bits))

    def coded(params: Any, images: Array, indices: Array) -> Array:
        found = []
        for side, view in enumerate([images, images[:, :, ::-1]][: 1 + flip]):
            own = {"params": params}
            logits: Any = net.apply(own, to_float(view), method="encode")
            drawn = None
            if draws:
                copies = side * draws + jnp.arange(draws)
                drawn = jax.vmap(lambda i, c: jax.vmap(uniforms, (None, 0))(i, c), (0, None))(
                    indices, copies
                )
            bits, _ = net.apply(own, logits[:, None], None, drawn, method="quantize")
            found.append(bits.reshape(*bits.shape[:2], -1, net.bits))
        return pack_bits(jnp.concatenate(found, axis=1))

    return coded


def fingerprint(params: Any) -> str:
    """Returns the SHA-256 of parameters on the host: their paths, types, shapes and bytes."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {patterns.path_of(keys): np.asarray(leaf) for keys, leaf in leaves}
    for path, leaf in sorted(named.items()):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def tokenizer_of(methods: Mapping[str, Method], slug: str) -> BinaryAutoencoder:
    """Returns the network of the stage "tokenizer". Raises UserError where there is no such."""
    model = methods[STAGE].model if STAGE in methods else None
    net = getattr(model, "net", None)
    if not isinstance(net, BinaryAutoencoder):
        raise UserError(
            f"{slug} has no stage {STAGE!r} that makes binary codes; its stages: "
            f"{', '.join(methods)}"
        )
    return net


def check_codes(source: Source, methods: Mapping[str, Method], given: Given) -> None:
    """Raises UserError where a source holds codes of another tokenizer than the one given."""
    if not isinstance(source, CodesSource) or STAGE not in given:
        return
    net, codes = tokenizer_of(methods, "this experiment"), source.codes
    if (codes.tokens, codes.bits) != (net.grid**2, net.bits):
        raise UserError(
            f"{source.folder} holds codes of {codes.tokens} tokens of {codes.bits} bits; this "
            f"tokenizer makes {net.grid**2} tokens of {net.bits} bits"
        )
    found = fingerprint(on_host(given[STAGE]["params"]["autoencoder"]))
    if codes.tokenizer != found:
        raise UserError(
            f"{source.folder} holds codes of another tokenizer, {codes.tokenizer[:12]}; the one "
            f"given is {found[:12]}. Encode again, or train with --base of the run that encoded"
        )
