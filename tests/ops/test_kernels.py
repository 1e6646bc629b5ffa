"""The kernels, interpreted, against recurrences in float64 written here and the XLA forms."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.ops.kernels import chunk_walk
from bigr_jax.ops.quasiseparable import Direction, quasiseparable
from bigr_jax.ops.ssd import ssd

# Two chunks, the second not full, two groups of two heads.
SHAPE = (1, 150, 4, 3, 2, 5)


def arrays(seed: int, b: int, length: int, h: int, p: int, g: int, n: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def direction() -> Direction:
        dt = jax.nn.softplus(normal(b, length, h) - 2)
        return Direction(dt, normal(b, length, g, n), normal(b, length, g, n))

    ways = direction(), direction()
    return normal(b, length, h, p), -jnp.exp(normal(h)), *ways, normal(b, length, h)


def walked(
    x: Any, A: Any, way: Direction, state: Any, reverse: bool, before: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence, token by token; before: a token reads what its neighbour left, with the
    neighbour's C, and the first one nothing.
    """
    x, A, dt, B, C = (np.asarray(v, np.float64) for v in (x, A, *way))
    share, y = x.shape[2] // B.shape[2], np.zeros_like(x)
    B, C = (np.repeat(v, share, axis=2) for v in (B, C))
    state, order = np.array(state, np.float64), range(x.shape[1])
    step = -1 if reverse else 1
    for t in order[::step]:
        if before and t - step in order:
            y[:, t] = np.einsum("bhpn,bhn->bhp", state, C[:, t - step])
        state = state * np.exp(dt[:, t] * A)[..., None, None]
        state += np.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        if not before:
            y[:, t] = np.einsum("bhpn,bhn->bhp", state, C[:, t])
    return y, state


def start(shape: tuple[int, ...]) -> Any:
    b, _, h, p, _, n = shape
    return jnp.asarray(np.random.default_rng(9).normal(size=(b, h, p, n)), jnp.float32)


def close(found: Any, wanted: Any, limit: float = 5e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=limit * max(np.abs(wanted).max(), 1.0))


def mixed(x: Any, A: Any, f: Direction, k: Direction, delta: Any, state: Any) -> np.ndarray:
    """Both directions and the diagonal, in float64."""
    y = np.asarray(delta, np.float64)[..., None] * np.asarray(x, np.float64)
    return y + sum(walked(x, A, w, state, r, before=True)[0] for w, r in ((f, False), (k, True)))


def test_both_directions_and_the_diagonal_with_gradients_of_the_xla_form() -> None:
    inputs, state = arrays(0, *SHAPE), start(SHAPE)

    def run(form: str, interpret: bool) -> list[Any]:
        def loss(*inputs: Any) -> Any:
            more: dict[str, Any] = {"form": form, "chunk": 128, "interpret": interpret}
            y = quasiseparable(*inputs, initial_state=state, **more)
            return jnp.square(y).sum(), y

        gradients, y = jax.jit(jax.grad(loss, range(5), has_aux=True))(*inputs)
        return [y, *jax.tree.leaves(gradients)]

    found = run("pallas", True)
    close(found[0], mixed(*inputs, state))
    for mine, theirs in zip(found, run("streamed", False), strict=True):
        close(mine, theirs, 1e-5)


def test_a_single_token_takes_its_diagonal() -> None:
    x, A, f, k, delta = arrays(1, 2, 1, 2, 3, 1, 5)
    run = functools.partial(quasiseparable, form="pallas", interpret=True)
    close(jax.jit(run)(x, A, f, k, delta), delta[..., None] * x)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_direction_from_a_state(reverse: bool) -> None:
    x, A, f, _, _ = arrays(1, *SHAPE)
    run = functools.partial(ssd, form="pallas", chunk=128, interpret=True, reverse=reverse)
    found = jax.jit(run)(x, f.dt, A, f.B, f.C, initial_state=start(SHAPE))
    wanted = walked(x, A, f, start(SHAPE), reverse, before=False)
    close(found.y, wanted[0])
    close(found.state, wanted[1])


def test_heads_in_blocks_and_products_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_walk, "WIDEST", 16)
    x, A, f, k, delta = arrays(3, 2, 140, 4, 4, 1, 8)
    x, f, k = (jax.tree.map(lambda v: v.astype(jnp.bfloat16), part) for part in (x, f, k))
    run = functools.partial(quasiseparable, form="pallas", chunk=128, interpret=True)
    found = jax.jit(run)(x, A, f, k, delta)
    assert chunk_walk.layout(x, chunk_walk.Side(f.dt, f.dt, *f), 128).blocks == 2
    wide = jax.tree.map(lambda v: v.astype(jnp.float32), (x, A, f, k, delta))
    wanted = jax.jit(functools.partial(quasiseparable, form="sequential"))(*wide)
    assert found.dtype == jnp.bfloat16
    assert np.abs(found.astype(jnp.float32) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_segments_are_the_xla_forms() -> None:
    x, A, f, k, delta = arrays(4, 1, 6, 2, 3, 1, 5)
    ids = jnp.asarray([[0, 0, 0, 1, 1, 1]])
    kernel = {"form": "pallas", "interpret": True, "segment_ids": ids}
    text = str(jax.make_jaxpr(functools.partial(quasiseparable, **kernel))(x, A, f, k, delta))
    assert "pallas_call" not in text
    text = str(jax.make_jaxpr(functools.partial(ssd, **kernel))(x, f.dt, A, f.B, f.C))
    assert "pallas_call" not in text


def test_a_kernel_is_refused_on_a_cpu() -> None:
    x, A, f, k, delta = arrays(5, 1, 4, 2, 3, 1, 5)
    with pytest.raises(ValueError, match="form is 'pallas', which is for a TPU"):
        quasiseparable(x, A, f, k, delta, form="pallas")
    with pytest.raises(ValueError, match="form is 'pallas', which is for a TPU"):
        ssd(x, f.dt, A, f.B, f.C, form="pallas")
