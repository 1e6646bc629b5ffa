"""Weights in {-1, 0, 1} and activations of 8 bits, with gradients that pass straight through.

Source: BitNet b1.58 (arXiv 2402.17764) and BitNet b1.58 Reloaded (arXiv 2407.09527): the scale of a
matrix is the mean, here also the median or the largest, of its magnitudes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bigr_jax.errors import one_of
from bigr_jax.ops.quantize import straight_through

Array = jax.Array

EPSILON = 1e-5
# {form: (values that a digit tells apart, digits in a byte)}; a digit is a weight plus one.
FORMS: Mapping[str, tuple[int, int]] = {"2bit": (4, 4), "trits": (3, 5)}


def median_magnitude(x: Array, axes: Sequence[int]) -> Array:
    """Returns the lower median of |x| over `axes`, float32, which keep the length 1.

    Of an even number the smaller of the two in the middle. Found digit by digit of the numbers'
    bits, in eight passes that count: neither are they sorted nor, where they lie on several
    devices, brought together.
    """
    # Magnitudes are ordered as the whole numbers that have the same bits.
    bits = lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)
    rank = (math.prod(x.shape[axis] for axis in axes) - 1) // 2
    digits = jnp.arange(1, 16, dtype=jnp.uint32).reshape(15, *[1] * x.ndim)

    def narrowed(turn: int | Array, found: Array) -> Array:
        shift = jnp.uint32(28) - jnp.uint32(4) * jnp.asarray(turn, jnp.uint32)
        below = (bits < found + (digits << shift)).sum(
            [axis % x.ndim + 1 for axis in axes], keepdims=True, dtype=jnp.int32
        )
        return found + ((below <= rank).sum(0, dtype=jnp.uint32) << shift)

    shape = [1 if axis in {a % x.ndim for a in axes} else n for axis, n in enumerate(x.shape)]
    found = lax.fori_loop(0, 8, narrowed, jnp.zeros(shape, jnp.uint32))
    return lax.bitcast_convert_type(found, jnp.float32)


def _mean_magnitude(x: Array, axes: Sequence[int]) -> Array:
    return jnp.abs(x.astype(jnp.float32)).mean(tuple(axes), keepdims=True)


def _max_magnitude(x: Array, axes: Sequence[int]) -> Array:
    return jnp.abs(x.astype(jnp.float32)).max(tuple(axes), keepdims=True)


MEASURES: Mapping[str, Callable[[Array, Sequence[int]], Array]] = {
    "mean": _mean_magnitude,
    "median": median_magnitude,
    "max": _max_magnitude,
}


def ternary_quantise(
    weights: Array,
    measure: str = "median",
    axes: Sequence[int] | None = None,
    epsilon: float = EPSILON,
    strength: float | Array = 1.0,
) -> tuple[Array, Array]:
    """Returns the codes of matrices, float32 in {-1, 0, 1}, as weights, and their scales.

    weights   any shape
    measure   of a matrix's magnitudes: "mean", "median" or "max"
    axes      those of one matrix, None: all; along the others lie several, each with its own scale
    strength  of the rounding; see `straight_through`

    The scale is 1 / max(epsilon, measure), float32, with the length 1 along `axes`, a constant for
    gradients; the codes are weights * scale, rounded, half to even, and clipped to [-1, 1]. Their
    gradient is that of weights * scale, also where they were clipped. Source: arXiv 2407.09527,
    section 3.
    Raises UserError for another measure.
    """
    if measure not in MEASURES:
        raise one_of("measure of the weights", measure, MEASURES)
    weights = weights.astype(jnp.float32)
    axes = range(weights.ndim) if axes is None else axes
    size = MEASURES[measure](lax.stop_gradient(weights), axes)
    scale = 1 / jnp.maximum(size, epsilon)
    value = weights * scale
    return straight_through(value, jnp.clip(jnp.round(value), -1, 1), strength), scale


def absmax_quantise(
    x: Array,
    axes: Sequence[int] = (-1,),
    bits: int = 8,
    epsilon: float = EPSILON,
    strength: float | Array = 1.0,
) -> tuple[Array, Array]:
    """Returns activations as whole numbers, float32, as x, and the scales that made them these.

    x         any shape
    axes      of the numbers that share a scale: those of one token
    bits      they reach from -2^(bits - 1) to 2^(bits - 1) - 1: of 8 bits, from -128 to 127
    strength  of the rounding; see `straight_through`

    The scale is 2^(bits - 1) / max(epsilon, max |x|), float32, with the length 1 along `axes`, a
    constant for gradients; the largest x, if positive, is clipped. Source: arXiv 2407.09527,
    section 3.
    """
    x, levels = x.astype(jnp.float32), 2 ** (bits - 1)
    size = jnp.abs(lax.stop_gradient(x)).max(tuple(axes), keepdims=True)
    scale = levels / jnp.maximum(size, epsilon)
    value = x * scale
    return straight_through(value, jnp.clip(jnp.round(value), -levels, levels - 1), strength), scale


def standardise(x: Array, axes: Sequence[int] = (-1,), epsilon: float = EPSILON) -> Array:
    """Returns x with mean 0 and variance 1 over `axes`, float32: a LayerNorm without parameters."""
    axes, x = tuple(axes), x.astype(jnp.float32)
    x = x - x.mean(axes, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + epsilon)


@functools.partial(jax.jit, static_argnames="form")
def pack_ternary(codes: Array, form: str = "trits") -> Array:
    """Returns codes in {-1, 0, 1}, [..., n], as uint8 [..., ceil(n / p)], p of them in a byte.

    form  "2bit": p = 4, the digits of base 4; "trits": p = 5, those of base 3, since 3^5 = 243. The
          first code is the lowest digit, and what fills up the last byte is 0
    Raises UserError for another form.
    """
    base, count = _form(form)
    lacking = -codes.shape[-1] % count
    digits = jnp.pad(codes.astype(jnp.int32) + 1, [(0, 0)] * (codes.ndim - 1) + [(0, lacking)])
    digits = digits.reshape(*codes.shape[:-1], -1, count)
    return (digits * base ** jnp.arange(count)).sum(-1).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("length", "form"))
def unpack_ternary(packed: Array, length: int, form: str = "trits") -> Array:
    """Returns the codes, int8 {-1, 0, 1} [..., length], of what `pack_ternary` packed.

    packed: uint8 [..., ceil(length / p)]
    Raises ValueError where the bytes are not of so many codes, UserError for another form.
    """
    base, count = _form(form)
    if packed.dtype != jnp.uint8 or packed.shape[-1] != -(-length // count):
        raise ValueError(
            f"packed weights are {packed.dtype} {packed.shape}, expected uint8 "
            f"[..., {-(-length // count)}] for {length} weights"
        )
    digits = packed[..., None].astype(jnp.int32) // base ** jnp.arange(count) % base
    return (digits.reshape(*packed.shape[:-1], -1)[..., :length] - 1).astype(jnp.int8)


def _form(form: str) -> tuple[int, int]:
    if form not in FORMS:
        raise one_of("form of packed weights", form, FORMS)
    return FORMS[form]
