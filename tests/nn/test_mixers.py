from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.nn import mixers
from bigr_jax.nn.block import Block
from bigr_jax.ops.rope import grid_table

OPTIONS = {
    "head_dim": 4, "state": 3, "groups": 2, "expand": 2, "conv": 3, "chunk": 4, "length": 12,
    "qk_dim": 3, "form": "matrix", "regions": 2, "topk": 4,
}  # fmt: skip
WIDTH, TOKENS, LENGTH = 8, 7, 12
# Their matrix is that of the places of the array, whatever stands there.
PLACED = {"dense_di", "dft_di", "vandermonde_di", "vandermonde_dd", "cauchy_di", "low_rank_di",
          "attention_di", "quasiseparable_di"}  # fmt: skip
SCANS = ("hydra", "causal", "add", "mult", "concat", "add_diagonal", "add_shift")
# Three rows, with padding after, before, and on both sides.
STARTS = (0, LENGTH - TOKENS, 2)


class Mean(nn.Module):
    """The average over the tokens that are no padding."""

    heads: int
    dropout: float
    dtype: type

    @nn.compact
    def __call__(self, u, mask, rope, deterministic):
        weight = np.ones(u.shape[:2]) if mask is None else mask
        mean = (u * weight[..., None]).sum(1, keepdims=True) / weight.sum(1)[:, None, None]
        return self.param("gain", nn.initializers.ones, ()) * mean + 0 * u


@functools.cache
def mixer(kind, dtype=jnp.float32):
    made = mixers.make(kind, heads=2, dropout=0.0, dtype=dtype, name="mixer", **OPTIONS)
    return made.clone(name=None)


@functools.cache
def params(kind):
    """Parameters away from the initial values, of which zeros and ones would hide a term."""
    spec = jax.ShapeDtypeStruct((1, 3, WIDTH), jnp.float32)
    made = nn.unbox(jax.eval_shape(mixer(kind).init, jax.random.key(0), spec)).get("params", {})
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: draw.normal(0, 0.4, leaf.shape).astype(np.float32), made)


def tokens(rows=1):
    return np.random.default_rng(2).normal(size=(rows, TOKENS, WIDTH)).astype(np.float32)


def padded(fill):
    """One sequence in three rows, differently padded with `fill`."""
    u, mask = np.full((3, LENGTH, WIDTH), fill, np.float32), np.zeros((3, LENGTH), bool)
    u += np.arange(LENGTH)[:, None] % 3
    for row, start in enumerate(STARTS):
        u[row, start : start + TOKENS], mask[row, start : start + TOKENS] = tokens()[0], True
    return u, mask


@functools.cache
def program(kind, dtype=jnp.float32):
    return jax.jit(lambda p, u, mask=None: mixer(kind, dtype).apply({"params": p}, u, mask))


@functools.cache
def alone(kind):
    """The one sequence without padding: of the layers of scans in float64."""
    if kind in SCANS:
        return oracle(jax.tree.map(np.float64, params(kind)), tokens().astype(np.float64), kind)[0]
    return np.asarray(program(kind)(params(kind), tokens()))[0]


@pytest.mark.parametrize("kind", mixers.MIXERS)
def test_padding_has_no_influence(kind):
    """Neither what stands there, bit for bit, nor how much of it there is."""
    (u, mask), (other, _) = padded(0.0), padded(5.0)
    y, again = (np.asarray(program(kind)(params(kind), v, mask)) for v in (u, other))
    assert y[mask].tobytes() == again[mask].tobytes()
    limit = 1e-6 * max(1, np.abs(alone(kind)).max())
    for row, start in list(zip(y, STARTS, strict=True))[: 1 if kind in PLACED else 3]:
        np.testing.assert_allclose(row[start : start + TOKENS], alone(kind), rtol=0, atol=limit)


@pytest.mark.parametrize("kind", mixers.MIXERS)
def test_who_sees_whom(kind):
    """The middle token sees every token; by a causal mixer none that comes after it."""
    (u, mask), middle = padded(0.0), TOKENS // 2
    y, seen = np.asarray(program(kind)(params(kind), u, mask)), []
    for place in range(TOKENS):
        moved = u.copy()
        moved[0, place] += 1
        changed = program(kind)(params(kind), moved, mask)
        seen.append((np.asarray(changed)[0, middle] != y[0, middle]).any())
    assert all(seen[: middle + 1])
    assert [bool(s) for s in seen[middle + 1 :]] == [kind not in mixers.CAUSAL] * (TOKENS // 2)


@pytest.mark.parametrize("kind", sorted(mixers.CAUSAL))
def test_no_gradient_reaches_what_comes_later(kind):
    run, middle = mixer(kind).apply, TOKENS // 2
    slope = jax.jit(jax.grad(lambda u: run({"params": params(kind)}, u)[0, middle, 1]))
    found = np.abs(slope(tokens())[0]).max(axis=-1)
    assert (found[: middle + 1] > 0).all() and not found[middle + 1 :].any()


@pytest.mark.parametrize(
    "kind",
    ["hydra", "linear_attention", "fnet", "dense_di", "toeplitz_dd", "vandermonde_dd", "cauchy_dd",
     "low_rank_dd", "attention_dd"],
)  # fmt: skip
def test_half_precision(kind):
    (low,) = program(kind, jnp.bfloat16)(params(kind), tokens())
    assert low.dtype == jnp.bfloat16
    limit = 0.03 * np.abs(alone(kind)).max()
    np.testing.assert_allclose(low.astype(jnp.float32), alone(kind), rtol=0, atol=limit)


def silu(x):
    return x / (1 + np.exp(-x))


def scanned(x, A, dt, B, C, shift):
    """One scan in float64; shifted, a token reads what its neighbour reads."""
    heads, y = x.shape[2], np.zeros_like(x)
    for n, h in np.ndindex(len(x), heads):
        group, state = h * B.shape[2] // heads, np.zeros((x.shape[3], B.shape[3]))
        for t in range(x.shape[1]):
            state = state * np.exp(dt[n, t, h] * A[h])
            state = state + dt[n, t, h] * np.outer(x[n, t, h], B[n, t, group])
            if t + shift < x.shape[1]:
                y[n, t + shift, h] = state @ C[n, t, group]
    return y


def oracle(p, u, kind):
    """The layers of scans in float64."""
    project = lambda name: np.tensordot(u, p[name]["kernel"], 1)  # noqa: E731

    def convolved(name):
        x, (kernel, bias) = project(name), (p[f"conv_{name}"][part] for part in ("kernel", "bias"))
        before = len(kernel) - 1 if kind == "causal" else len(kernel) // 2
        y = np.zeros_like(x) + bias
        for t, k in np.ndindex(x.shape[1], len(kernel)):
            if 0 <= t + k - before < x.shape[1]:
                y[:, t] += kernel[k] * x[:, t + k - before]
        return silu(y)

    x, pairs, A = convolved("x"), convolved("BC"), -np.exp(p["A_log"])
    dt = np.log1p(np.exp(project("dt") + p["dt_bias"]))
    shift, sides = int(kind in ("hydra", "add_shift")), []
    for i in range(dt.shape[2]):
        order = slice(None, None, -1 if i else 1)
        side = (x, A, dt[:, :, i], pairs[:, :, i, 0], pairs[:, :, i, 1])
        side = [v if v is A else v[:, order] for v in side]
        sides.append(scanned(*side, shift)[:, order])
    if kind == "concat":
        y = np.concatenate(sides, axis=2)
    else:
        y = np.prod(sides, axis=0) if kind == "mult" else np.sum(sides, axis=0)
    if kind in ("hydra", "add_diagonal"):
        y = y + (np.tensordot(x, p["skip"]["kernel"], 2) + p["D"])[..., None] * x
    y = y.reshape(*y.shape[:2], -1)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    gate = silu(project("gate")).reshape(*u.shape[:2], -1)
    return (y * np.tile(gate, y.shape[-1] // gate.shape[-1])) @ p["out"]["kernel"]


@pytest.mark.parametrize(("before", "kind"), [(2, "toeplitz_di"), (3, "linear_attention")])
def test_what_is_relative_does_not_see_where_it_stands(before, kind):
    """Lags by their nature; linear attention by the angles between rotated queries and keys."""
    table = grid_table((1, LENGTH), WIDTH // 2)
    u = np.zeros((1, LENGTH, WIDTH), np.float32)
    run = jax.jit(lambda u, mask: mixer(kind).apply({"params": params(kind)}, u, mask, table))
    found = []
    for start in (0, before):
        here, mask = u.copy(), np.zeros((1, LENGTH), bool)
        here[:, start : start + TOKENS], mask[:, start : start + TOKENS] = tokens(), True
        found.append(run(here, mask)[:, start : start + TOKENS])
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6 * np.abs(found[0]).max())


def test_one_config_serves_all():
    assert mixer("attention").heads == mixer("linear_attention").heads == 2
    assert (mixer("hydra").state, mixer("hydra").form) == (3, "matrix")
    assert (mixer("low_rank_dd").qk_dim, mixer("low_rank_dd").learned) == (3, False)
    assert mixer("low_rank_di").length == 12 and mixer("low_rank_di").learned
    with pytest.raises(ValueError, match=r"options \['hed_dim'\] of no mixer; legal: chunk, conv"):
        mixers.make("fnet", heads=1, dropout=0.0, dtype=np.float32, name="mixer", hed_dim=3)


@pytest.mark.parametrize(
    ("kind", "length", "text"),
    [
        ("dense_di", 0, "Dense: length=0, but it needs that of the longest sequence"),
        ("cauchy_dd", 0, "Cauchy: length=0, but it needs"),
        ("toeplitz_di", 6, "Toeplitz: a sequence of 7 tokens; learned is length=6"),
        ("quasiseparable_di", 6, "Quasiseparable: a sequence of 7 tokens"),
    ],
)
def test_a_length_that_does_not_fit(kind, length, text):
    made = mixer(kind).clone(length=length)
    with pytest.raises(UserError, match=text):
        jax.eval_shape(made.init, jax.random.key(0), tokens())


def test_published_sizes():
    """Parameters of a layer at width 768; what the baselines lack or have more than Hydra."""
    spec = jax.ShapeDtypeStruct((1, 4, 768), jnp.float32)

    def count(kind):
        made = mixers.make(kind, heads=12, dropout=0.0, dtype=jnp.float32, name="m", length=128)
        made = jax.eval_shape(made.clone(name=None).init, jax.random.key(0), spec)
        return sum(leaf.size for leaf in jax.tree.leaves(made))

    heads, inner, side = 24, 1536, 768 * (128 + 24) + 8 * 128
    assert count("hydra") == count("add_diagonal") == 3_825_224
    assert count("add_shift") == count("add") == count("mult") == 3_825_224 - heads * (inner + 1)
    assert count("concat") == count("add") + inner * 769
    assert count("causal") == count("add") - side
    pair = 2 * 12 * 16 * (768 + 8)
    assert count("low_rank_dd") == count("attention_dd") == count("dft_di") + pair
    assert count("dense_di") == count("dft_di") + 12 * 128 * 128
    assert count("fnet") == 0 and count("linear_attention") == count("attention") == 4 * 768**2


def test_unknown_mixer_is_refused_by_name():
    with pytest.raises(UserError, match=r"mixer='atention'.*did you mean 'attention'"):
        mixers.make("atention", heads=1, dropout=0.0, dtype=np.float32, name="mixer")


def test_a_new_mixer_serves_the_block(monkeypatch):
    monkeypatch.setitem(mixers.MIXERS, "mean", Mean)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    block = Block(heads=1, hidden=8, mixer="mean")
    variables = nn.unbox(block.init(jax.random.key(0), x))
    assert variables["params"]["mixer"].keys() == {"gain"}
    variables["params"]["mlp"]["down"]["kernel"] *= 0
    y = block.apply(variables, x)
    norm = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, x + norm.mean(1, keepdims=True), atol=1e-6)
