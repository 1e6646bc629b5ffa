"""Zero-shot editing with a trained BiGR: the tokens that stay are known, the others are drawn anew.

Nothing is trained for it: a masked model predicts any tokens from any others. Codes are those of
the tokenizer, in raster order; how many tokens an iteration draws is counted from the unknown ones,
so that a known token is never drawn again.
Source: BiGR (arXiv 2410.14672), "Zero-shot generalized applications".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigr_jax.errors import UserError, one_of
from bigr_jax.generate.codes import sample_codes, sample_conditioned
from bigr_jax.generate.masked import Known, MaskedSampling
from bigr_jax.models.bigr import BiGR
from bigr_jax.ops.bernoulli import Schedule

Array = jax.Array
Settings = Mapping[str, Any]

# What the paper changes in the sampling of each application.
INPAINT: Settings = {
    "iterations": 25, "cfg_scale": 2.5, "gumbel_temperature": 0.0, "remaining": "linear",
}  # fmt: skip
INTERPOLATE: Settings = {"iterations": 20, "cfg_scale": 2.5}
ENRICH: Settings = {**INPAINT, "iterations": 20, "cfg_scale": 10.0}
SWEEPS = 4
CELL = 4


def changed(base: MaskedSampling, *settings: Settings) -> MaskedSampling:
    """Returns `base` with fields replaced, the last setting of a field counting.

    Raises UserError for an unknown field, naming the nearest, and for a value of another type or
    out of range.
    """
    known = {field.name: type(field.default) for field in dataclasses.fields(MaskedSampling)}
    found: dict[str, Any] = {}
    for name, value in (item for part in settings for item in part.items()):
        if name not in known:
            raise one_of("sampling setting", name, known)
        kind = known[name]
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if kind is float and (whole or isinstance(value, np.floating)):
            value = float(value)
        if kind is int and whole:
            value = int(value)
        if type(value) is not kind:
            raise UserError(f"sample.{name}={value!r} is no {kind.__name__}")
        found[name] = value
    return dataclasses.replace(base, **found)


def token_mask(mask: Any, grid: tuple[int, int]) -> Any:
    """Returns which tokens a mask of pixels marks, bool [..., N]: where it marks their middle.

    mask  bool [..., H, W] of any size, NumPy or JAX; True = draw anew
    grid  (rows, cols) of tokens, N = rows * cols in raster order
    """
    rows, cols = (
        ((np.arange(count) + 0.5) * length / count).astype(int)
        for count, length in zip(grid, mask.shape[-2:], strict=True)
    )
    picked = mask[..., rows[:, None], cols]
    return picked.reshape(*picked.shape[:-2], -1)


def inpaint(
    net: BiGR,
    variables: Any,
    keys: Array,
    codes: Array,
    mask: Array,
    schedule: Schedule,
    sampling: MaskedSampling,
    *,
    labels: Array | None = None,
) -> Array:
    """Returns codes, float32 {0, 1} [B, N, K], in which the marked tokens are drawn anew.

    Args:
      net, variables, schedule: the model.
      keys: one per image [B], of which what it becomes depends alone.
      codes: {0, 1} [B, N, K].
      mask: bool [B, N], True = draw anew; all other tokens stay, bit by bit.
      sampling: see INPAINT for the published choices.
      labels: what to draw, int [B]; None: what suits the known tokens. No class guided against no
        class is no class, so that then one branch is computed, whatever the scale.
    """
    if labels is None:
        sampling = dataclasses.replace(sampling, cfg_scale=1.0)
        labels = net.null(len(codes))
    known = Known(codes, ~mask)
    return sample_codes(net, variables, keys, labels, schedule, sampling, known)


def outpaint(
    net: BiGR,
    variables: Any,
    keys: Array,
    codes: Array,
    mask: Array,
    schedule: Schedule,
    sampling: MaskedSampling,
    **rest: Any,
) -> Array:
    """Returns what `inpaint` does, with the marked tokens kept and all around them drawn anew."""
    return inpaint(net, variables, keys, codes, ~mask, schedule, sampling, **rest)


def interpolate(
    net: BiGR,
    variables: Any,
    keys: Array,
    ends: tuple[Array, Array],
    share: Array,
    schedule: Schedule,
    sampling: MaskedSampling,
) -> Array:
    """Returns codes, float32 {0, 1} [B, N, K], of classes mixed: e = a e_1 + (1 - a) e_2.

    The mixture takes the place of the class token and modulates the blocks; the null branch of the
    guidance stays as it is. Images of one path are given one key each time, so that they differ in
    the share alone; a share of 1 is the first class exactly.

    Args:
      net, variables, schedule: the model.
      keys: one per image [B].
      ends: the first and the second class, int [B] each.
      share: a, of the first class, float [B] in [0, 1].
      sampling: see INTERPOLATE for the published choices.
    """
    share = share[:, None, None]
    condition = jax.tree.map(
        lambda first, second: share * first + (1.0 - share) * second,
        *(net.apply(variables, labels, method="condition") for labels in ends),
    )
    return sample_conditioned(net, variables, keys, condition, schedule, sampling)


def enrich(
    net: BiGR,
    variables: Any,
    keys: Array,
    codes: Array,
    schedule: Schedule,
    sampling: MaskedSampling,
    *,
    labels: Array | None = None,
    sweeps: int = SWEEPS,
) -> Array:
    """Returns codes, float32 {0, 1} [B, N, K], with detail added: every token is drawn anew, in
    turns.

    The grid is cut into cells of 2 x 2 tokens. In a sweep, the four places of a cell follow one
    another in an order drawn for each image, and of all cells together the token in that place is
    drawn anew, given all others. What a sweep gives goes into the next. On a grid with an odd side,
    the cells at the end are cut off.

    Args:
      net, variables, keys, codes, labels: as those of `inpaint`.
      sampling: see ENRICH for the published choices.
      sweeps: how often every token is drawn, 1 or more.
    """
    rows, cols = net.grid
    place = jnp.asarray((2 * (np.arange(rows)[:, None] % 2) + np.arange(cols) % 2).reshape(-1))
    # What a turn draws with must not be what chose the turn.
    order_keys, draw_keys = jax.vmap(jax.random.split, out_axes=1)(keys)

    def orders(key: Array) -> Array:
        return jax.vmap(lambda k: jax.random.permutation(k, CELL))(jax.random.split(key, sweeps))

    def turn(codes: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        number, chosen = now
        fresh = jax.vmap(jax.random.fold_in, (0, None))(draw_keys, number)
        mask = place == chosen[:, None]
        how = (schedule, sampling)
        return inpaint(net, variables, fresh, codes, mask, *how, labels=labels), None

    order = jax.vmap(orders)(order_keys).reshape(len(keys), -1)
    turns = jnp.arange(order.shape[1]), order.T
    return jax.lax.scan(turn, codes.astype(jnp.float32), turns)[0]
