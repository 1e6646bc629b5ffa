from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bigr_jax.ops import flops

LAYERS, TOKENS, WIDTH = 6, 32, 48
X = jnp.ones((TOKENS, WIDTH))
W = jnp.ones((LAYERS, WIDTH, WIDTH))
FORWARD = 2 * LAYERS * TOKENS * WIDTH * WIDTH


def scanned(w, x):
    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0].sum()


def looped(w, x):
    for layer in w:
        x = jnp.tanh(x @ layer)
    return x.sum()


def counted(function, *args):
    return flops.count(jax.make_jaxpr(function)(*args))


def test_scan_counts_as_often_as_it_runs():
    assert counted(scanned, W, X) == counted(looped, W, X) == FORWARD


def test_a_gradient_costs_twice_the_forward_pass():
    # The first layer's input is no parameter, so one product is spared.
    spared = FORWARD // LAYERS
    assert counted(jax.grad(looped), W, X) == 3 * FORWARD - spared
    assert counted(jax.grad(scanned, argnums=(0, 1)), W, X) == 3 * FORWARD
    remat = jax.checkpoint(looped)
    assert counted(jax.grad(remat, argnums=(0, 1)), W, X) > 3 * FORWARD


def test_agrees_with_xla_within_two_percent_where_nothing_is_scanned():
    program = jax.jit(jax.grad(looped, argnums=(0, 1)))
    # Wide enough that element-wise work, which only XLA counts, is small.
    traced = program.trace(jnp.ones((2, 256, 256)), jnp.ones((TOKENS, 256)))
    ours = flops.count(traced.jaxpr)
    xla = flops.compiled_flops(traced.lower().compile())
    assert xla == pytest.approx(ours, rel=0.02)


def test_batched_products_and_einsum():
    q, k = jnp.ones((2, 3, 5, 7)), jnp.ones((2, 3, 11, 7))
    got = counted(lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, k), q, k)
    assert got == 2 * 2 * 3 * 5 * 11 * 7


@pytest.mark.parametrize("groups, stride", [(1, 1), (1, 2), (4, 1)])
def test_convolutions(groups, stride):
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 12))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    outputs = 2 * (8 // stride) ** 2 * 12
    assert counted(convolve, image, kernel) == 2 * outputs * 9 * 4 // groups


def test_a_transposed_convolution_costs_what_its_adjoint_costs():
    image, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((2, 2, 3, 5))
    up = counted(lambda i, k: jax.lax.conv_transpose(i, k, (2, 2), "SAME"), image, kernel)
    assert up == 2 * (8 * 8 * 5) * (2 * 2 * 3) // 4


def test_branches_calls_and_manual_axes():
    small, large = jnp.ones((4, 4)), jnp.ones((8, 8))

    def branch(flag):
        return jax.lax.cond(flag, lambda: (small @ small).sum(), lambda: (large @ large).sum())

    assert counted(branch, True) == 2 * 8**3
    assert counted(jax.jit(lambda: jax.jit(jnp.matmul)(small, small))) == 2 * 4**3
    custom = jax.custom_vjp(lambda a: a @ a)
    custom.defvjp(lambda a: (a @ a, a), lambda a, g: (g @ a.T,))
    assert counted(custom, small) == 2 * 4**3
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    share = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, None), out_specs=rows)
    assert counted(share, large, large) == 2 * 8**3


def test_the_formula_for_transformers_equals_a_count():
    heads, length, batch, layers = 2, 16, 3, 2
    width = heads * 8
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width)}
    params = {
        name: jnp.ones((layers, *shape))
        for name, shape in {**shapes, "down": (4 * width, width)}.items()
    }

    def block(x, p):
        q, k, v = (
            part.reshape(batch, length, heads, -1) for part in jnp.split(x @ p["qkv"], 3, -1)
        )
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + mixed @ p["out"]
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    def loss(params, x):
        return jax.lax.scan(block, x, params)[0].sum()

    x = jnp.ones((batch, length, width))
    got = counted(jax.grad(loss, argnums=(0, 1)), params, x)
    size = sum(p.size for p in params.values())
    assert got == flops.transformer_train_flops(size, batch * length, layers, width, length)


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("an unknown kind", None),
    ],
)
def test_peaks_of_known_devices(kind, tera):
    peak = flops.peak_flops(SimpleNamespace(platform="tpu", device_kind=kind))
    assert peak == (None if tera is None else tera * 1e12)


def test_the_cpu_is_measured_once_and_no_product_beats_its_peak_by_far():
    device = jax.devices("cpu")[0]
    peak = flops.peak_flops(device)
    assert peak == flops.peak_flops(device)
    assert 1e8 < peak < 1e14


def test_a_program_without_an_analysis():
    assert flops.compiled_flops(SimpleNamespace(cost_analysis=lambda: None)) is None
    assert flops.compiled_flops(SimpleNamespace(cost_analysis=lambda: {"flops": -1})) is None


def test_products_of_one_type_can_be_counted_alone():
    def f(x, y):
        return jnp.sum(x @ x) + jnp.sum(y @ y).astype(jnp.float32)

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((4, 4)), jnp.zeros((8, 8), jnp.bfloat16))
    assert flops.count(jaxpr, jnp.float32) == 2 * 4**3
    assert flops.count(jaxpr, jnp.bfloat16) == 2 * 8**3
    assert flops.count(jaxpr) == 2 * 4**3 + 2 * 8**3
