"""Denoising of bits: from fair coins to P(bit = 1), along a falling list of times.

Source: BiGR (arXiv 2410.14672), "Binary transcoder"; Binary Latent Diffusion (arXiv 2304.04820).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.generate.guidance import combine, twice
from bigr_jax.ops.bernoulli import Schedule, bit_probability, posterior

Array = jax.Array
_Bits = tuple[Array, Array]
Denoise = Callable[[Array, Array, Array], Array]


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
) -> Array:
    """Runs the chain of one pass over `times` and returns P(bit = 1), float32 [batch, ..., K].

    As published, the posterior takes the prediction, which has already seen x_t, for a prior: x_t
    counts twice, and more steps do not converge to the joint distribution of the bits.

    Args:
      denoise, condition, target, guidance, temperature: see `predict_bits`.
      uniform: step -> uniform draws [batch, ..., K] of the noisy bits at `times[step]`.
      schedule: of the diffusion that the denoiser was trained on.
      times: falling, from T (`sampling_times`).
    """
    jumps = np.stack([times, [*times[1:], 0]], axis=1).astype(np.int32)

    def step(carry: _Bits, jump: tuple[Array, Array]) -> tuple[_Bits, None]:
        chance, _ = carry
        index, (t, s) = jump
        x_t = (uniform(index) < chance).astype(jnp.float32)
        p = predict_bits(
            denoise,
            x_t,
            t,
            condition,
            target=target,
            guidance=guidance,
            temperature=temperature,
        )
        return (posterior(x_t, p, t, s, schedule), p), None

    coins = jnp.full(jax.eval_shape(uniform, 0).shape, 0.5)
    steps = jnp.arange(len(jumps)), jnp.asarray(jumps)
    (_, p), _ = jax.lax.scan(step, (coins, coins), steps)
    return p
