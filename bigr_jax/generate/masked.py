"""Generation by a masked model: predict every token, keep those it is surest of, repeat.

The confidence of a token is how far its bit probabilities are from a coin's. Everything is compiled
as one program: a scan over iterations, inside it a scan over denoising steps, inside it a loop over
as many blocks of tokens as need the transcoder, by far the largest cost: those that are unknown, or
to be drawn now, and whose next noisy bits are not decided without it.
Source: BiGR (arXiv 2410.14672), "Entropy-ordered sampling"; MaskGIT (arXiv 2202.04200).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import UserError, one_of
from bigr_jax.generate.bernoulli import Denoise, denoise_bits, pick, put
from bigr_jax.generate.draws import Draws
from bigr_jax.generate.guidance import twice
from bigr_jax.ops.bernoulli import Schedule, sampling_times

Array = jax.Array

_NAMES = {
    "order": ("entropy", "random", "raster"),
    "remaining": ("cos", "linear"),
    "cfg_schedule": ("constant", "linear"),
    "gumbel_schedule": ("down", "up", "constant"),
}


@dataclasses.dataclass(frozen=True)
class MaskedSampling:
    """The choices of the sampler; hashable, as a compiled program is made for each.

    With ratio = (i + 1) / iterations in iteration i = 0, 1, ...:

    Attributes:
      iterations: passes of the transformer.
      denoise_steps: evaluations of the transcoder in each; no more than the diffusion has times.
      temperature: divides the transcoder's logits.
      cfg_scale: guidance on the logits; 1 is none, and costs half.
      cfg_schedule: "constant", or "linear": 1 + (scale - 1) * ratio.
      gumbel_temperature: of the noise on the confidences.
      gumbel_schedule: the noise is times 1 - ratio ("down"), ratio ("up") or 1 ("constant").
      order: "entropy" chooses the surest tokens; "raster" the first ones and "random" those of a
        random permutation per image, in equal numbers.
      remaining: share of tokens that stay unknown, cos(pi / 2 ratio) ("cos") or 1 - ratio
        ("linear").
      deterministic: a chosen token's bits are its probabilities rounded, not drawn.

    The defaults are the paper's for BiGR-L. Raises UserError for an unknown name or a number out of
    range.
    """

    iterations: int = 20
    denoise_steps: int = 100
    temperature: float = 1.0
    cfg_scale: float = 2.5
    cfg_schedule: str = "constant"
    gumbel_temperature: float = 0.17
    gumbel_schedule: str = "down"
    order: str = "entropy"
    remaining: str = "cos"
    deterministic: bool = False

    def __post_init__(self) -> None:
        for field, legal in _NAMES.items():
            if getattr(self, field) not in legal:
                raise one_of(f"sample.{field}", getattr(self, field), legal)
        for field in ("iterations", "denoise_steps"):
            if getattr(self, field) < 1:
                raise UserError(f"sample.{field}={getattr(self, field)}: legal: 1 and more")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"sample.temperature={self.temperature}: legal: more than 0")
        if not 0 <= self.gumbel_temperature < math.inf:
            raise UserError(
                f"sample.gumbel_temperature={self.gumbel_temperature}: legal: 0 and more"
            )
        if not math.isfinite(self.cfg_scale):
            raise UserError(f"sample.cfg_scale={self.cfg_scale}: legal: a finite number")

    @property
    def guided(self) -> bool:
        """Whether the model is asked for conditional and null predictions."""
        return self.cfg_scale != 1.0


class Steps(NamedTuple):
    """The model, as the sampler sees it; rows = batch, or with guidance twice (`guidance.pair`).

    hidden   (bits {0, 1} [rows, N, K], mask bool [rows, N], True = unknown)
             -> condition [rows, N, D]
    denoise  (x_t {0, 1} [rows, n, K], t int scalar from 1, condition [rows, n, D])
             -> logits [rows, n, K], each token on its own
    """

    hidden: Callable[[Array, Array], Array]
    denoise: Denoise


class Known(NamedTuple):
    """Tokens that are given: bits {0, 1} [batch, N, K], and mask bool [batch, N], True = given."""

    bits: Array
    mask: Array


class Generated(NamedTuple):
    """What was drawn: bits float32 {0, 1} [batch, N, K]; iteration int32 [batch, N], -1 = given."""

    bits: Array
    iteration: Array


def remaining_counts(name: str, iterations: int, length: int) -> np.ndarray:
    """Returns how many of U unknown tokens are left after i passes, int32 [iterations + 1, N + 1].

    Entry [i, U] is floor(rate(i / iterations) U) for U = 0 ... N = `length`; a table, as the
    product with a traced U in float32 would round some whole numbers down to the next.
    """
    done, unknown = np.arange(iterations + 1)[:, None], np.arange(length + 1)[None]
    if name == "linear":
        return (unknown * (iterations - done) // iterations).astype(np.int32)
    rate = np.cos(np.pi / 2 * done / iterations)
    rate[-1] = 0.0
    return np.floor(rate * unknown).astype(np.int32)


def confidence(p: Array) -> Array:
    """Returns how far bits are from fair coins, mean over K of 2 |p - 1/2|: [..., K] -> [...]."""
    return jnp.abs(2.0 * p - 1.0).mean(axis=-1)


def sample_masked(
    steps: Steps,
    draws: Draws,
    schedule: Schedule,
    sampling: MaskedSampling,
    *,
    target: str = "flip",
    known: Known | None = None,
    compact: bool = True,
    block: int | None = None,
) -> Generated:
    """Draws all unknown tokens; a known one is never touched.

    Args:
      steps: the model.
      draws: the random numbers, for example `KeyDraws(key, (batch, N, K))`.
      schedule: of the diffusion.
      sampling: the choices.
      target: what the transcoder's logits predict, "flip", "z0" or "direct".
      known: tokens that are given; the schedule counts the others, image by image.
      compact: the transcoder runs on the tokens that need it; False: on all of them. The bits are
        the same, as far as the matrix products of the two shapes round alike.
      block: how many tokens of an image the transcoder gets at once; None: a sixteenth of them, in
        a small batch more.

    Raises:
      UserError: an unknown target.
      ValueError: known tokens or hidden vectors of the wrong shape.
    """
    iterations, length = sampling.iterations, draws.shape[1]
    state = _start(known, draws.shape, iterations)
    counts = remaining_counts(sampling.remaining, iterations, length)
    left = jnp.asarray(counts)[:, (state.iteration >= 0).sum(axis=1)]
    scores = _fixed_scores(sampling.order, draws)
    run = _Run(steps, draws, schedule, sampling, target, scores)
    passes = _Pass(jnp.arange(iterations), left[:-1] - left[1:], *_strengths(sampling))
    needs = (counts[:-1] if scores is None else counts[:-1] - counts[1:]).max(axis=1)
    # Where there are fewer tokens than iterations, some iterations draw none.
    passes = _Pass(*(x[needs > 0] for x in passes))
    capacity = max(int(needs.max()), 1) if compact else length
    if compact:
        run = dataclasses.replace(run, block=block or _block(draws.shape[0], capacity))
    body = functools.partial(run.iterate, capacity=capacity)
    state, _ = jax.lax.scan(body, state, passes)
    return state


class _Pass(NamedTuple):
    """What an iteration knows beforehand; the sequence of all has a leading axis.

    number    of the iteration, from 0
    take      how many tokens to draw, int [batch]
    guidance  scale
    noise     temperature
    """

    number: Array
    take: Array
    guidance: Array
    noise: Array


@dataclasses.dataclass(frozen=True)
class _Run:
    """One generation; `scores` [batch, N] order the tokens, highest first, or confidence does.

    block  tokens of an image that the transcoder gets at once; None: always all, needed or not
    """

    steps: Steps
    draws: Draws
    schedule: Schedule
    sampling: MaskedSampling
    target: str
    scores: Array | None
    block: int | None = None

    def iterate(self, state: Generated, now: _Pass, capacity: int) -> tuple[Generated, None]:
        """Draws `now.take` more tokens of each image; the body of a scan."""
        unknown = state.iteration == self.sampling.iterations
        if self.scores is None:
            p = self.predict(state.bits, unknown, unknown, now, capacity)
            noise = now.noise * self.draws.gumbel(now.number)
            chosen = _largest(confidence(p) + noise, unknown, now.take)
        else:
            chosen = _largest(self.scores, unknown, now.take)
            p = self.predict(state.bits, unknown, chosen, now, capacity)
        threshold = 0.5 if self.sampling.deterministic else self.draws.bits(now.number)
        bits = jnp.where(chosen[..., None], (threshold < p).astype(jnp.float32), state.bits)
        return Generated(bits, jnp.where(chosen, now.number, state.iteration)), None

    def predict(
        self, bits: Array, unknown: Array, needed: Array, now: _Pass, capacity: int
    ) -> Array:
        """Returns P(bit = 1) [batch, N, K], right where `needed` [batch, N], at most `capacity`."""
        guidance = now.guidance if self.sampling.guided else None
        rows = twice if self.sampling.guided else lambda x: x
        mask = rows(unknown)
        condition = self.steps.hidden(rows(bits), mask)
        if condition.shape[:2] != mask.shape:
            raise ValueError(f"hidden vectors {condition.shape} for rows and tokens {mask.shape}")
        # Stable: the needed tokens in raster order, then as many others as fill the room.
        index = jnp.argsort(~needed, axis=1)[:, :capacity]
        everywhere = capacity == needed.shape[1]

        def among(x: Array, index: Array = index) -> Array:
            return x if everywhere else pick(x, index)

        p = denoise_bits(
            self.steps.denoise,
            among(condition, rows(index)),
            lambda step: among(self.draws.denoise(now.number, step)),
            self.schedule,
            sampling_times(self.schedule.total, self.sampling.denoise_steps),
            target=self.target,
            guidance=guidance,
            temperature=self.sampling.temperature,
            needed=None if self.block is None else among(needed[..., None])[..., 0],
            block=self.block,
        )
        return p if everywhere else put(jnp.zeros(bits.shape), index, p)


def _block(batch: int, tokens: int) -> int:
    """How many tokens of an image to evaluate at once: few, so that hardly more than need be are
    evaluated, and enough to fill the matrix units.
    """
    return min(tokens, max(-(-tokens // 16), -(-64 // batch)))


def _start(known: Known | None, shape: tuple[int, int, int], iterations: int) -> Generated:
    """The state before the first pass; an unknown token has the iteration number `iterations`."""
    if known is None:
        return Generated(jnp.zeros(shape), jnp.full(shape[:2], iterations, jnp.int32))
    if known.bits.shape != shape or known.mask.shape != shape[:2]:
        raise ValueError(f"known {known.bits.shape}, mask {known.mask.shape}: not {shape}")
    mask = known.mask.astype(bool)
    bits = jnp.where(mask[..., None], known.bits, 0).astype(jnp.float32)
    return Generated(bits, jnp.where(mask, -1, iterations).astype(jnp.int32))


def _strengths(sampling: MaskedSampling) -> tuple[Array, Array]:
    """Guidance scale and noise temperature of every iteration."""
    ratio = np.arange(1, sampling.iterations + 1) / sampling.iterations
    grown = {"constant": np.ones_like(ratio), "linear": ratio}[sampling.cfg_schedule]
    fade = {"constant": np.ones_like(ratio), "up": ratio, "down": 1.0 - ratio}
    guidance = 1.0 + (sampling.cfg_scale - 1.0) * grown
    noise = sampling.gumbel_temperature * fade[sampling.gumbel_schedule]
    return jnp.asarray(guidance, jnp.float32), jnp.asarray(noise, jnp.float32)


def _fixed_scores(order: str, draws: Draws) -> Array | None:
    if order == "raster":
        return jnp.broadcast_to(-jnp.arange(draws.shape[1], dtype=jnp.float32), draws.shape[:2])
    return draws.order() if order == "random" else None


def _largest(scores: Array, among: Array, count: Array) -> Array:
    """Marks the `count` [batch] largest scores [batch, N] among the tokens that `among` marks."""
    descending = jnp.argsort(jnp.where(among, -scores, jnp.inf), axis=1)
    rank = jnp.argsort(descending, axis=1)
    return among & (rank < count[:, None])
