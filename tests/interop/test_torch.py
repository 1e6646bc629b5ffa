"""Published weights <-> variables: names, shapes, round trips, errors."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bigr_jax.errors import UserError
from bigr_jax.interop.torch import from_torch, published, shapes, to_torch
from bigr_jax.models.bigr import BiGR
from bigr_jax.models.binary_autoencoder import BinaryAutoencoder
from bigr_jax.models.patch_discriminator import PatchDiscriminator

TOKENIZER = BinaryAutoencoder(
    filters=4,
    multipliers=(1, 2, 2),
    blocks=2,
    attention_resolutions=(4, 8),
    embedding=6,
    bits=5,
    image_size=16,
    channels=1,
    norm_first=False,
    gen_mul=1.5,
)
GENERATOR = BiGR(
    depth=2, width=16, heads=2, bits=5, grid=(2, 3), num_classes=3, head_width=12, head_blocks=2
)
MODELS = {
    "tokenizer": TOKENIZER,
    "generator": GENERATOR,
    "generator without adaLN": GENERATOR.clone(adaln=False),
    "discriminator": PatchDiscriminator(filters=2, layers=2, channels=1),
}


def drawn(model, seed=0):
    """Returns a published file of random values, some of them not finite or signed zeros."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in shapes(model).items():
        value = rng.normal(size=shape).astype(np.float32)
        value.flat[:1] = rng.choice([-0.0, np.inf, np.nan, 1e-40])
        state[name] = value
    return state


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in other.items():
        mine = np.asarray(one[name])
        assert (mine.shape, mine.dtype) == (value.shape, value.dtype), name
        assert mine.tobytes() == value.tobytes(), name


@pytest.fixture(params=MODELS, scope="module")
def case(request):
    """A model, a published file for it, and the variables made from that file."""
    model = MODELS[request.param]
    state = drawn(model)
    return model, state, from_torch(model, state)


def test_round_trip_is_exact(case):
    model, state, variables = case
    same(to_torch(model, variables), state)


def test_a_model_trained_here_is_written_whole(case):
    model, state, variables = case
    unused = [".".join(path) for path in flatten_dict(variables.get("unused", {}))]
    used = {name: value for name, value in variables.items() if name != "unused"}
    # As the trainer has them: on the device and in boxes that carry axis names.
    boxed = jax.tree.map(lambda x: nn.LogicallyPartitioned(jnp.asarray(x), (None,) * x.ndim), used)
    zeros = {name: np.zeros_like(state[name]) for name in unused}
    back = to_torch(model, boxed)
    assert back.keys() == state.keys()
    for name, value in (state | zeros).items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_layouts():
    state = drawn(TOKENIZER)
    params = from_torch(TOKENIZER, state)["params"]
    kernel = params["encoder"]["conv_in"]["kernel"]
    assert kernel[2, 0, 0, 3].tobytes() == state["encoder.blocks.0.weight"][3, 0, 2, 0].tobytes()
    query = params["encoder"]["middle_attention"]["q"]["kernel"]
    name = next(n for n in state if n.endswith("q.weight") and state[n].shape[0] == 8)
    assert query.shape == (8, 8) and state[name].shape == (8, 8, 1, 1)
    state = drawn(GENERATOR)
    down = from_torch(GENERATOR, state)["params"]["layers"]["mlp"]["down"]["kernel"]
    wanted = np.stack([state[f"layers.{i}.feed_forward.w2.weight"].T for i in range(2)])
    np.testing.assert_array_equal(down, wanted)


def test_tensors_that_nothing_reads_are_kept_apart():
    variables = from_torch(TOKENIZER, drawn(TOKENIZER))
    unused = variables["unused"]
    assert set(unused) == {"encoder", "generator"}
    assert unused["generator"]["logsigma"]["2"]["weight"].shape == (1, 4, 1, 1)
    state = drawn(MODELS["discriminator"])
    state["main.3.num_batches_tracked"] = np.array(7)
    variables = from_torch(MODELS["discriminator"], state)
    assert variables["unused"] == {"main": {"3": {"num_batches_tracked": 7}}}
    same(to_torch(MODELS["discriminator"], variables), state)


def test_second_names_and_constants_survive():
    state = drawn(GENERATOR)
    prefix = "diffusion_processor._denoise_fn."
    for name in [name for name in state if name.startswith("denoise_mlp.")]:
        state[prefix + name.removeprefix("denoise_mlp.")] = state[name]
    state["diffusion_processor.scheduler.beta"] = np.linspace(0, 1, 257)
    variables = from_torch(GENERATOR, state)
    same(to_torch(GENERATOR, variables), state)
    # After fine-tuning the second name holds the new values too.
    kernel = variables["params"]["denoiser"]["bits_in"]["kernel"]
    variables["params"]["denoiser"]["bits_in"]["kernel"] = kernel + 1
    written = to_torch(GENERATOR, variables)
    np.testing.assert_array_equal(written[prefix + "x_embedder.weight"], kernel.T + 1)
    state[prefix + "x_embedder.weight"] = state[prefix + "x_embedder.weight"] + 1
    with pytest.raises(UserError, match=r"1 contradictory: .*x_embedder.weight differs from"):
        from_torch(GENERATOR, state)


def test_one_error_names_every_key():
    state = drawn(TOKENIZER)
    state["encoder.blocks.1.norm1.wieght"] = state.pop("encoder.blocks.1.norm1.weight")
    del state["quantize.embed.weight"]
    state["extra"] = np.zeros(3)
    state["encoder.blocks.0.bias"] = np.zeros((4, 1))
    with pytest.raises(UserError) as caught:
        from_torch(TOKENIZER, state)
    assert str(caught.value) == (
        "the weights do not fit BinaryAutoencoder: "
        "2 missing: encoder.blocks.1.norm1.weight, quantize.embed.weight; "
        "2 unknown: encoder.blocks.1.norm1.wieght (did you mean 'encoder.blocks.1.norm1.weight'?), "
        "extra; 1 of another shape: encoder.blocks.0.bias is (4, 1), wanted (4,)"
    )


def test_errors_of_variables():
    variables = from_torch(GENERATOR, drawn(GENERATOR))
    params = variables["params"]
    params["mask_tok"] = params.pop("mask_token")
    params["norm"]["scale"] = params["norm"]["scale"][1:]
    with pytest.raises(UserError) as caught:
        to_torch(GENERATOR, variables)
    assert str(caught.value) == (
        "the variables do not fit BiGR: 1 missing: params/mask_token; "
        "1 unknown: params/mask_tok; 1 of another shape: params/norm/scale is (15,), wanted (16,)"
    )


def test_unknown_models():
    with pytest.raises(UserError, match=r"model='BiGR-L-d25' is not known \(did you mean 'BiGR-L"):
        from_torch("BiGR-L-d25", {})
    with pytest.raises(UserError, match=r"model='Dense' is not known.*legal: BinaryAutoencoder"):
        from_torch(nn.Dense(3), {})
    with pytest.raises(UserError, match=r"fit B-AE-d24: \d+ missing: encoder.blocks.0.weight"):
        from_torch("B-AE-d24", {})


# Totals of the published files, tensors that nothing reads included.
COUNTS = {
    "B-AE-d24": 65_530_654,
    "B-AE-d32": 65_534_758,
    "B-AE-d32-512": 61_328_166,
    "BiGR-L-d24": 336_346_136,
    "BiGR-XL-d24": 799_372_824,
    "BiGR-XXL-d24": 1_480_028_184,
    "BiGR-L-512-d32": 372_718_624,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes_without_allocating(name):
    assert sum(int(np.prod(shape)) for shape in shapes(name).values()) == COUNTS[name]


def test_every_published_name_has_a_module():
    assert {*COUNTS, "B-AE-d20", "BiGR-L-d20", "BiGR-XXL-d32", "BiGR-B-d24"} <= set(published())


def test_published_shapes():
    generator = shapes("BiGR-L-d24")
    assert len(generator) == 8 + 24 * 8 + 2 * (6 + 3 * 3)
    for name, shape in {
        "mask_tok": (1, 1024),
        "diffusion_pos_embed_learned": (1, 256, 1024),
        "cls_embedding.embedding_table.weight": (1001, 1024),
        "tok_embeddings.weight": (1024, 24),
        "adaLN.1.weight": (6144, 1024),
        "layers.0.ada_gss": (1, 1, 6, 1024),
        "layers.3.attention.wqkv.weight": (3072, 1024),
        "layers.3.attention.wo.weight": (1024, 1024),
        "layers.23.feed_forward.w1.weight": (2816, 1024),
        "layers.23.feed_forward.w2.weight": (1024, 2816),
        "norm.weight": (1024,),
        "denoise_mlp.t_embedder.mlp.0.weight": (1024, 256),
        "denoise_mlp.blocks.2.adaLN_modulation.1.weight": (3072, 1024),
        "denoise_mlp.final_layer.linear.weight": (24, 1024),
        "denoise_mlp.final_layer.adaLN_modulation.1.bias": (2048,),
    }.items():
        assert generator[name] == shape, name
    tokenizer = shapes("B-AE-d24")
    for name, shape in {
        "encoder.blocks.0.weight": (128, 3, 3, 3),
        "encoder.blocks.21.weight": (256, 512, 3, 3),
        "quantize.proj.0.weight": (24, 256, 1, 1),
        "quantize.embed.weight": (24, 256),
        "generator.blocks.0.weight": (256,),
        "generator.blocks.22.bias": (3,),
        "generator.logsigma.2.weight": (3, 128, 1, 1),
    }.items():
        assert tokenizer[name] == shape, name
