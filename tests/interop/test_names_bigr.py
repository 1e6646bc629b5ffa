from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox
from flax.traverse_util import flatten_dict

from bigr_jax.interop.layout import published_shape
from bigr_jax.interop.names_bigr import CARRIED, table
from bigr_jax.models.bigr import named


@pytest.fixture(scope="module")
def shapes():
    """The parameters of the published L, by path."""
    model = named("L")
    bits, t = jnp.zeros((1, 256, 24)), jnp.ones((1, 256), jnp.int32)
    label, mask = jnp.zeros((1,), jnp.int32), t > 0
    init = lambda key: model.init(key, bits, label, mask, bits, t)  # noqa: E731
    variables = jax.eval_shape(init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(unbox(variables)).items()}


@pytest.fixture(scope="module")
def published(shapes):
    return {e.torch: published_shape(e, shapes[e.path]) for e in table(named("L"))}


def test_every_parameter_of_every_layer_has_one_name(shapes, published):
    entries = table(named("L"))
    assert len(published) == len(entries)
    rows = [(entry.path, entry.layer) for entry in entries]
    wanted = [
        (path, layer)
        for path, shape in shapes.items()
        for layer in (range(shape[0]) if "layers" in path else (None,))
    ]
    assert sorted(rows, key=str) == sorted(wanted, key=str)


def test_sizes_agree(shapes, published):
    ours = sum(int(np.prod(shape)) for shape in shapes.values())
    assert sum(int(np.prod(shape)) for shape in published.values()) == ours == 336_346_136


@pytest.mark.parametrize(
    "name, shape",
    {
        "mask_tok": (1, 1024),
        "diffusion_pos_embed_learned": (1, 256, 1024),
        "cls_embedding.embedding_table.weight": (1001, 1024),
        "tok_embeddings.weight": (1024, 24),
        "tok_embeddings.bias": (1024,),
        "adaLN.1.weight": (6144, 1024),
        "adaLN.1.bias": (6144,),
        "layers.23.ada_gss": (1, 1, 6, 1024),
        "layers.23.attention.wqkv.weight": (3072, 1024),
        "layers.0.attention.wo.weight": (1024, 1024),
        "layers.0.feed_forward.w1.weight": (2816, 1024),
        "layers.0.feed_forward.w3.weight": (2816, 1024),
        "layers.0.feed_forward.w2.weight": (1024, 2816),
        "layers.0.attention_norm.weight": (1024,),
        "layers.0.ffn_norm.weight": (1024,),
        "norm.weight": (1024,),
        "denoise_mlp.t_embedder.mlp.0.weight": (1024, 256),
        "denoise_mlp.t_embedder.mlp.2.bias": (1024,),
        "denoise_mlp.x_embedder.weight": (1024, 24),
        "denoise_mlp.c_embedder.weight": (1024, 1024),
        "denoise_mlp.blocks.2.mlp.0.weight": (1024, 1024),
        "denoise_mlp.blocks.2.mlp.2.weight": (1024, 1024),
        "denoise_mlp.blocks.2.adaLN_modulation.1.weight": (3072, 1024),
        "denoise_mlp.final_layer.linear.weight": (24, 1024),
        "denoise_mlp.final_layer.adaLN_modulation.1.weight": (2048, 1024),
    }.items(),
)
def test_published_shapes(published, name, shape):
    assert published[name] == shape


def test_constants_are_carried(published):
    extra = [
        f"diffusion_processor.scheduler.{k}" for k in ("k_final", "b_final", "beta", "cumbeta")
    ]
    carried = lambda name: any(re.fullmatch(pattern, name) for pattern in CARRIED)  # noqa: E731
    assert all(map(carried, extra))
    assert not any(map(carried, published))
    assert not carried("diffusion_processor.scheduler.gamma")


def test_without_adaln_its_tensors_have_no_row():
    rows = {entry.torch for entry in table(named("L", adaln=False))}
    assert not any("ada" in name and "denoise" not in name for name in rows)
