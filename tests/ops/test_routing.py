"""Routing and routed attention against float64, query by query; forms against each other."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigr_jax.errors import UserError
from bigr_jax.ops import regions, routing
from bigr_jax.ops.attention import softmax_attention
from bigr_jax.ops.kernels import routed

# Examples, regions of 3 queries each, heads, channels, regions of 4 keys each, channels of values.
B, R, N, H, D, S, M, E, K = 2, 5, 3, 2, 4, 6, 4, 5, 3


def draw(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def case(seed: int = 0) -> tuple[Any, ...]:
    """Query, key, value, routes, a mask by which the first region sees nothing, and weights."""
    arrays = draw(seed, (B, R, N, H, D), (B, S, M, H, D), (B, S, M, H, E), (B, R, S), (B, S, M))
    routes = np.argsort(arrays[3], axis=-1)[..., :K].astype(np.int32)
    mask = arrays[4] > -0.5
    mask[0, routes[0, 0]] = False
    return (*arrays[:3], routes, mask, 0.2 + np.abs(arrays[3][..., :K]))


def oracle(query, key, value, routes, mask=None, weights=None, scale=None) -> np.ndarray:
    """One query of one head after the other."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = np.zeros((*query.shape[:4], value.shape[-1]))
    for b, r, n, h in np.ndindex(*query.shape[:4]):
        keys, values = [], []
        for place, region in enumerate(routes[b, r]):
            times = 1.0 if weights is None else float(weights[b, r, place])
            for token in range(key.shape[2]):
                if mask is None or mask[min(b, len(mask) - 1), region, token]:
                    keys.append(times * key[b, region, token, h])
                    values.append(times * value[b, region, token, h])
        if keys:
            logits = scale * np.stack(keys) @ query[b, r, n, h]
            shares = np.exp(logits - logits.max())
            out[b, r, n, h] = shares @ np.stack(values) / shares.sum()
    return out


def found(form: str, masked: bool, weighted: bool, **more: Any) -> list[Any]:
    """What a form gives, and the gradients of query, key, value and weights."""
    *arrays, routes, mask, weights = case()
    cotangent = draw(9, (B, R, N, H, E))[0]

    def loss(query, key, value, weights=None):
        y = routing.routed_attention(
            query,
            key,
            value,
            jnp.asarray(routes),
            key_mask=mask if masked else None,
            weights=weights,
            form=form,
            **more,
        )
        return (y * cotangent).sum(), y

    given = [*arrays, weights] if weighted else arrays
    gradients, y = jax.jit(jax.grad(loss, range(len(given)), has_aux=True))(*given)
    return [y, *gradients]


@pytest.fixture(scope="module")
def reference():
    return functools.cache(functools.partial(found, "reference"))


def close(mine: Any, theirs: Any, limit: float = 3e-6) -> None:
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize(("masked", "weighted"), [(False, False), (True, True)])
def test_the_reference_is_the_oracle(reference, masked, weighted):
    *arrays, routes, mask, weights = case()
    wanted = oracle(*arrays, routes, mask if masked else None, weights if weighted else None)
    np.testing.assert_allclose(reference(masked, weighted)[0], wanted, atol=2e-6)


def test_gradients_of_the_reference_are_slopes_of_the_oracle(reference):
    *arrays, routes, mask, weights = case()
    arrays, cotangent = [*arrays, weights], draw(9, (B, R, N, H, E))[0]
    for place, gradient in enumerate(reference(True, True)[1:]):
        step = draw(20 + place, arrays[place].shape)[0]
        ends = []
        for sign in (1, -1):
            moved = [np.asarray(a, np.float64) for a in arrays]
            moved[place] = moved[place] + sign * 1e-5 * step
            ends.append((oracle(*moved[:3], routes, mask, moved[3]) * cotangent).sum())
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((gradient * step).sum(), slope, rtol=1e-4, atol=1e-5)


# By 3 the last step comes to one region again; 5 are all.
@pytest.mark.parametrize(
    ("form", "chunk", "masked", "weighted"),
    [
        ("gather", None, True, True),
        ("walk", 1, False, False),
        ("walk", 3, True, True),
        ("auto", None, True, False),
    ],
)
def test_forms_agree_with_their_gradients(reference, form, chunk, masked, weighted):
    close(found(form, masked, weighted, chunk=chunk), reference(masked, weighted))


def test_examples_side_by_side_as_on_several_devices(reference, monkeypatch):
    monkeypatch.setattr("bigr_jax.ops.routed_walk.apart", lambda: False)
    close(found("walk", True, True, chunk=3), reference(True, True))


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_agrees(reference, monkeypatch, masked):
    # A step then takes one route, of the examples one at once.
    monkeypatch.setattr(routed, "LANES", 4)
    monkeypatch.setattr(routed, "READY", R * K)
    close(found("pallas", masked, False, interpret=True), reference(masked, False))


def test_heads_that_share_lanes_and_regions_of_whole_tiles():
    shapes = (1, 2, 4, 8, 32), (1, 3, 8, 8, 32), (1, 3, 8, 8, 32)
    query, key, value = draw(3, *shapes)
    routes = np.asarray([[[2, 0], [1, 2]]], np.int32)
    inputs = routing.Inputs(query, key, value, routes, None, None)
    assert routed.layout(inputs) == routed.Layout(8, 4, 2, 1)
    run = functools.partial(routing.routed_attention, form="pallas", interpret=True, scale=0.3)
    actual = jax.jit(run)(query, key, value, routes)
    np.testing.assert_allclose(actual, oracle(query, key, value, routes, scale=0.3), atol=2e-6)


@pytest.mark.parametrize("form", ["reference", "gather", "walk", "pallas"])
def test_bfloat16_has_float32_sums(form):
    *arrays, routes, mask, _ = case()
    low = [jnp.asarray(a, jnp.bfloat16) for a in arrays]
    run = functools.partial(routing.routed_attention, form=form, interpret=True, key_mask=mask)
    actual = jax.jit(run)(*low, routes)
    wanted = oracle(*(np.asarray(a, np.float32) for a in low), routes, mask)
    assert actual.dtype == jnp.bfloat16
    assert np.abs(np.asarray(actual, np.float32) - wanted).max() < 0.02


def test_a_map_of_a_map_and_any_order_of_routes():
    *arrays, routes, mask, _ = case()
    run = functools.partial(routing.routed_attention, form="walk", key_mask=mask[:1])
    turned = np.stack([routes, routes[..., ::-1]])
    both = jax.jit(jax.vmap(run, (None, None, None, 0)))(*arrays, turned)
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)
    np.testing.assert_allclose(both[0], oracle(*arrays, routes, mask[:1]), atol=2e-6)


def maps(seed: int, batch: int, size: tuple[int, int]) -> list[np.ndarray]:
    return draw(seed, *((batch, *size, 2, channels) for channels in (4, 4, 3)))


def bilevel(query, key, value, cut, topk, scale=None) -> tuple[np.ndarray, np.ndarray]:
    """The whole method on a map, in float64, without a token that is not there."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    size = query.shape[1:3]
    h, w = (-(-length // count) for length, count in zip(size, cut, strict=True))
    places = [(y // h) * cut[1] + x // w for y, x in np.ndindex(*size)]
    flat = [a.reshape(len(a), -1, *a.shape[3:]) for a in (query, key, value)]
    members = [[t for t, place in enumerate(places) if place == r] for r in range(cut[0] * cut[1])]
    out = np.zeros((*flat[0].shape[:3], value.shape[-1]))
    routes = np.full((len(query), len(members), topk), -1)
    for b in range(len(query)):
        real = [r for r, tokens in enumerate(members) if tokens]
        for r in real:
            own = flat[0][b, members[r]].mean(0)
            gain = [(own * flat[1][b, members[s]].mean(0)).sum() for s in real]
            best = np.asarray(real)[np.argsort(-np.asarray(gain), kind="stable")[:topk]]
            routes[b, r, : len(best)] = best
            seen = [t for s in best for t in members[s]]
            parts = (
                flat[0][b : b + 1, None, members[r]],
                *(a[b : b + 1, None, seen] for a in flat[1:]),
            )
            out[b, members[r]] = oracle(*parts, np.zeros((1, 1, 1), int), scale=scale)[0, 0]
    return out.reshape(*query.shape[:4], -1), routes


@pytest.mark.parametrize(
    ("batch", "size", "cut", "topk"),
    [
        (1, (1, 1), (2, 2), 2),
        (2, (7, 10), (4, 4), 3),
        (1, (9, 5), (4, 2), 8),
        (1, (6, 4), (1, 4), 2),
    ],
)
def test_maps_of_any_size_are_exact(batch, size, cut, topk):
    arrays = maps(1, batch, size)
    run = functools.partial(routing.bilevel_attention, regions=cut, topk=topk)
    found = jax.jit(run)(*arrays)
    mixed, routes = bilevel(*arrays, cut, topk)
    np.testing.assert_allclose(found.mixed, mixed, atol=2e-6)
    # Of regions that have tokens, and so far as there are such regions.
    some = regions.valid(size, cut).any(-1)
    told = np.where(routes >= 0, np.asarray(found.routes), -1)[:, some]
    np.testing.assert_array_equal(told, routes[:, some])


def test_one_region_and_all_regions_are_dense_attention():
    arrays = maps(2, 2, (5, 6))
    flat = [a.reshape(2, 30, 2, -1) for a in arrays]
    wanted = np.asarray(softmax_attention(*flat)).reshape(2, 5, 6, 2, 3)
    for cut, topk in (((1, 1), 1), ((2, 3), 6)):
        run = functools.partial(routing.bilevel_attention, regions=cut, topk=topk)
        np.testing.assert_allclose(jax.jit(run)(*arrays).mixed, wanted, atol=2e-6)


def test_routes_to_itself_are_windows():
    arrays = maps(3, 2, (4, 6))
    own = jnp.broadcast_to(jnp.arange(6)[:, None], (2, 6, 1))
    mixed = routing.bilevel_attention(*arrays, regions=(2, 3), topk=1, routes=own).mixed
    windows = [regions.split(a, (2, 3)).reshape(12, 4, 2, -1) for a in arrays]
    wanted = softmax_attention(*windows).reshape(2, 6, 4, 2, 3)
    np.testing.assert_allclose(mixed, regions.join(wanted, (4, 6), (2, 3)), atol=2e-6)


def test_what_fills_a_region_up_has_no_influence():
    query, key, value = (regions.split(a, (4, 4)) for a in maps(4, 1, (7, 10)))
    shown = regions.valid((7, 10), (4, 4))[None]

    def run(filler):
        q, k, v = (jnp.where(shown[..., None, None], a, filler) for a in (query, key, value))
        routes = routing.route(q, k, topk=3, query_mask=shown, key_mask=shown)

        def loss(q, k, v):
            y = routing.routed_attention(q, k, v, routes, key_mask=shown)
            return jnp.where(shown[..., None, None], y, 0).sum()

        return routes, jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    small, large = jax.jit(run)(0.0), jax.jit(run)(1e20)
    jax.tree.map(np.testing.assert_array_equal, small, large)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(large))


def test_no_gradient_goes_through_routing_unless_weights_are_asked_for():
    query, key = draw(5, (1, 3, 2, 2, 4), (1, 4, 5, 2, 4))

    def weights(differentiable, query, key):
        run = functools.partial(routing.weighted_route, topk=2, differentiable=differentiable)
        routes, found = run(query, key)
        return (found**2).sum() + routes.sum(), (routes, found)

    for differentiable in (False, True):
        slope = jax.grad(functools.partial(weights, differentiable), (0, 1), has_aux=True)
        gradients, (routes, shares) = jax.jit(slope)(query, key)
        assert all(bool(np.any(g)) is differentiable for g in gradients)
    means = [a.astype(np.float64).mean(2).reshape(1, -1, 8) for a in (query, key)]
    logits = means[0] @ means[1].swapaxes(1, 2) / np.sqrt(8)
    np.testing.assert_array_equal(routes, np.argsort(-logits, axis=-1)[..., :2])
    best = np.exp(np.sort(logits, axis=-1)[..., :-3:-1])
    np.testing.assert_allclose(shares, best / best.sum(-1, keepdims=True), atol=1e-6)


def test_soft_routing_weighs_keys_and_values():
    query, key, value = maps(6, 1, (4, 4))
    parts = [regions.split(a, (2, 2)) for a in (query, key, value)]
    routes, weights = routing.weighted_route(*parts[:2], topk=2)
    run = functools.partial(routing.bilevel_attention, regions=(2, 2), topk=2, soft=True)
    wanted = oracle(*parts, routes, weights=weights)
    mixed = jax.jit(run)(query, key, value).mixed
    np.testing.assert_allclose(mixed, regions.join(wanted, (4, 4), (2, 2)), atol=2e-6)


@settings(max_examples=6)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    cut=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
)
def test_any_map_any_regions_any_topk(size, cut, data):
    topk = data.draw(st.integers(1, cut[0] * cut[1]))
    arrays = maps(7, 1, size)
    run = functools.partial(routing.bilevel_attention, regions=cut, topk=topk, form="gather")
    np.testing.assert_allclose(
        jax.jit(run)(*arrays).mixed, bilevel(*arrays, cut, topk)[0], atol=3e-6
    )


def test_mistakes_are_named():
    query, key, value, routes, _, weights = case()
    run = routing.routed_attention
    for topk in (0, S + 1):
        with pytest.raises(UserError, match=f"topk={topk} of 6 regions; legal: 1 to 6"):
            routing.route(query, key, topk=topk)
    with pytest.raises(ValueError, match="form is 'dense'; legal: auto, reference, gather, walk"):
        run(query, key, value, routes, form="dense")
    with pytest.raises(ValueError, match="which takes no weights; legal with them: auto, ref"):
        run(query, key, value, routes, weights=weights, form="pallas")
    with pytest.raises(ValueError, match="form is 'pallas', which is for a TPU"):
        run(query, key, value, routes, form="pallas")
    with pytest.raises(ValueError, match=r"value has the shape \(2, 5, 4, 2, 5\), expected"):
        run(query, key, value[:, 1:], routes)
    with pytest.raises(ValueError, match=r"key_mask has the shape \(3, 6, 4\)"):
        run(query, key, value, routes, key_mask=np.ones((3, S, M), bool))
    with pytest.raises(ValueError, match="it and routes exclude each other"):
        arrays, own = maps(8, 1, (2, 2)), np.zeros((1, 1, 1), np.int32)
        routing.bilevel_attention(*arrays, regions=(1, 1), topk=1, routes=own, soft=True)


def test_the_choice_goes_by_platform_and_size(monkeypatch):
    def chosen(platform, tokens, topk):
        monkeypatch.setattr(routing.choice, "platform", lambda: platform)
        shape = jax.ShapeDtypeStruct((64, 49, tokens, 2, 32), jnp.float32)
        routes = jax.ShapeDtypeStruct((64, 49, topk), jnp.int32)
        return routing.form_of(routing.Inputs(shape, shape, shape, routes, None, None))

    cases = [(4, 16), (16, 4), (256, 4)]
    assert [chosen("cpu", *c) for c in cases] == ["walk"] * 3
    assert [chosen("tpu", *c) for c in cases] == ["reference", "gather", "walk"]
    assert [chosen("gpu", *c) for c in cases] == ["gather", "gather", "walk"]
    for rows in routing.TABLE.values():
        assert rows[-1][:2] == (np.inf, np.inf)
        assert all(row.form in routing.FORMS for row in rows)
