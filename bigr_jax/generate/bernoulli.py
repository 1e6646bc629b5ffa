"""Denoising of bits: from fair coins to P(bit = 1), along a falling list of times.

Source: BiGR (arXiv 2410.14672), "Binary transcoder"; Binary Latent Diffusion (arXiv 2304.04820).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.generate.guidance import combine, twice
from bigr_jax.ops.bernoulli import Schedule, bit_probability, posterior

Array = jax.Array
_Bits = tuple[Array, Array]
Denoise = Callable[[Array, Array, Array], Array]

_ROUNDING = 1e-6


def predict_bits(
    denoise: Denoise,
    x_t: Array,
    t: Array,
    condition: Array,
    *,
    target: str = "flip",
    guidance: Array | float | None = None,
    temperature: float = 1.0,
) -> Array:
    """Returns P(x_0 = 1), float32 [batch, ..., K], as the denoiser sees it from x_t.

    Args:
      denoise: (x_t [rows, ..., K], t, condition [rows, ...]) -> logits [rows, ..., K], with `t` an
        int that counts from 1.
      x_t: {0, 1} [batch, ..., K].
      t: int scalar.
      condition: what the denoiser takes, one row for each of x_t, or with guidance two
        (`guidance.pair`).
      target: what the logits predict: "flip", "z0" or "direct".
      guidance: scale on the logits; None: no guidance, the condition is not doubled.
      temperature: divides the logits of both branches.
    """
    if guidance is None:
        logits = denoise(x_t, t, condition) / temperature
    else:
        logits = combine(denoise(twice(x_t), t, condition) / temperature, guidance)
    return bit_probability(logits, x_t, target)


def denoise_bits(
    denoise: Denoise,
    condition: Array,
    uniform: Callable[[Array | int], Array],
    schedule: Schedule,
    times: Sequence[int],
    *,
    target: str = "flip",
    guidance: Array | float | None = None,
    temperature: float = 1.0,
    needed: Array | None = None,
    block: int | None = None,
) -> Array:
    """Runs the chain of one pass over `times` and returns P(bit = 1), float32 [batch, ..., K].

    As published, the posterior takes the prediction, which has already seen x_t, for a prior: x_t
    counts twice, and more steps do not converge to the joint distribution of the bits.

    With `needed` the denoiser runs only where what it says can matter, see `undecided`: of many
    small steps about half decide nothing new in a token. The bits drawn are those of the whole
    chain.

    Args:
      denoise, condition, target, guidance, temperature: see `predict_bits`.
      uniform: step -> uniform draws [batch, ..., K] of the noisy bits at `times[step]`.
      schedule: of the diffusion that the denoiser was trained on.
      times: falling, from T (`sampling_times`).
      needed: bool [batch, n], the tokens whose result is read, of bits [batch, n, K]; None: all,
        and the denoiser sees all tokens at every step.
      block: how many tokens of an image the denoiser then gets at once; None: all n.
    """
    jumps = np.stack([times, [*times[1:], 0]], axis=1).astype(np.int32)
    # Nothing is drawn after the last step; its draws are as good as any.
    following = np.minimum(np.arange(len(jumps)) + 1, len(jumps) - 1)
    how: Any = {"target": target, "guidance": guidance, "temperature": temperature}

    def step(carry: _Bits, jump: tuple[Array, Array]) -> tuple[_Bits, None]:
        x_t, p = carry
        index, (t, s) = jump
        draws = uniform(index)
        if needed is None:
            p = predict_bits(denoise, x_t, t, condition, **how)
        else:
            now = needed & undecided(draws, x_t, t, s, schedule)
            p = _refreshed(p, now, block, functools.partial(part, x_t, t))
        return ((draws < posterior(x_t, p, t, s, schedule)).astype(jnp.float32), p), None

    def part(x_t: Array, t: Array, index: Array) -> Array:
        # index: [batch, block]
        rows = index if guidance is None else twice(index)
        x_t, given = pick(x_t, index), pick(condition, rows)
        return predict_bits(denoise, x_t, t, given, **how)

    x_t = (uniform(0) < 0.5).astype(jnp.float32)
    (_, p), _ = jax.lax.scan(
        step, (x_t, jnp.full(x_t.shape, 0.5)), (jnp.asarray(following), jnp.asarray(jumps))
    )
    return p


def undecided(uniforms: Array, x_t: Array, t: Array, s: Array, schedule: Schedule) -> Array:
    """Returns where the next noisy bits depend on what the denoiser says, bool [...].

    Whatever P(x_0 = 1) is, P(x_s = 1 | x_t) lies between its values for 0 and for 1, which are
    close together when the jump is short: a uniform draw outside of them decides a bit alone.
    uniforms: of the bits at s, [..., K]; x_t: [..., K]; t, s: see `posterior`.
    """
    least, most = (posterior(x_t, jnp.full_like(x_t, p), t, s, schedule) for p in (0.0, 1.0))
    # Wider by more than posteriors are rounded: what is called decided must be.
    return ((uniforms > least - _ROUNDING) & (uniforms < most + _ROUNDING)).any(axis=-1)


def pick(x: Array, index: Array) -> Array:
    """Returns the tokens `index` [rows, m] of x [rows, n, ...]: [rows, m, ...]."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


def put(x: Array, index: Array, values: Array) -> Array:
    """Returns x [rows, n, ...] with `values` [rows, m, ...] at the tokens `index` [rows, m]."""
    return jax.vmap(lambda x, index, values: x.at[index].set(values))(x, index, values)


def _refreshed(p: Array, now: Array, block: int | None, part: Callable[[Array], Array]) -> Array:
    """Returns p [batch, n, K] with part(index) at the tokens that `now` marks, block by block."""
    length = now.shape[1]
    size = min(block or length, length)
    most = now.sum(axis=1).max()
    order = jnp.argsort(~now, axis=1)

    def more(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Where the last block would reach beyond the end, it begins earlier.
        begin, p = carry
        index = jax.lax.dynamic_slice_in_dim(order, begin, size, axis=1)
        return begin + size, put(p, index, part(index))

    return jax.lax.while_loop(lambda carry: carry[0] < most, more, (jnp.asarray(0), p))[1]
