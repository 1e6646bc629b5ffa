"""The contract between a paper's method and the one trainer.

A method is a NamedTuple of pure functions. Every function sees

    variables  {"params": tree, other collections: tree}, as `flax.linen.Module.init` returns them
    key        a typed key (`jax.random.key`), already folded with the step
    batch      {"image": uint8 [B, H, W, C], "label": int32 [B], "index": int32 [B], "mask": float32
               [B], ...}; global arrays, sharded over the mesh; `mask` is 0 on the rows that pad the
               last evaluation batch
    given      {stage: variables} of the earlier stages that the method names in `needs`; constants
               here
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

Array = jax.Array
Batch = Mapping[str, Array]
Variables = Mapping[str, Any]
Given = Mapping[str, Variables]


class Sum(NamedTuple):
    """A weighted sum that adds up over batches and hosts: numbers, or arrays of one shape."""

    value: Array
    weight: Array

    def metric(self) -> float:
        """Returns value / weight, of arrays the mean over the entries that have a weight; 0 where
        none has.
        """
        value, weight = np.atleast_1d(self.value, self.weight)
        there = weight > 0
        return float((value[there] / weight[there]).mean()) if there.any() else 0.0


class Rows(NamedTuple):
    """Some rows of an array [N, ...] of a collection, to be replaced: in `Aux.mutable` it stands
    where the array would, which is then written in place, neither copied nor looked through.

    places  int32 [B], of the rows; where one stands twice, so do its values
    values  [B, ...]
    """

    places: Array
    values: Array


class Aux(NamedTuple):
    """Beside the scalar of a loss: metrics to log, and collections to replace (not params), whole
    or by `Rows` of their arrays.
    """

    metrics: Mapping[str, Array]
    mutable: Mapping[str, Any] = {}


class TrainState(NamedTuple):
    """All that a checkpoint holds of a stage; also used as a tree of its shapes or placements.

    step       int32 scalar, the number of steps taken
    variables  as `Method.init` returns them, unboxed
    opt_state  of optax
    ema        {collection: its average} of the params and of running statistics, or None
    """

    step: Any
    variables: Any
    opt_state: Any
    ema: Any


class Report(NamedTuple):
    """What a finished stage has to show: numbers for results.json, and pictures."""

    metrics: Mapping[str, float]
    images: Mapping[str, np.ndarray]


class Part(NamedTuple):
    """A network with a published file, and where a stage keeps its variables.

    places  {collection: path of keys in it}, e.g. {"params": ("autoencoder",)}
    """

    module: nn.Module
    places: Mapping[str, tuple[str, ...]]


class Network(NamedTuple):
    """The one network of a stage that has no more to offer than its file; a `Method.model`."""

    parts: tuple[Part, ...]


Apply = Callable[[TrainState, Any, Mapping[str, Any]], tuple[TrainState, Mapping[str, Array]]]


class Method(NamedTuple):
    """A paper's method as pure functions; the only thing that the trainer knows.

    init      (key, batch, given) -> variables, with logical axis names as linen metadata
    loss      (variables, key, batch, given) -> (float32 scalar, Aux)
    evaluate  (variables, key, batch, given) -> {name: Sum}; deterministic layers, rows weighted by
              `mask`
    needs     stages whose variables arrive in `given`
    sample    (variables, key, labels [B], given, **knobs) -> images [B, H, W, C] in [0, 1]; jitted
              by the caller
    optimizer (section, schedule of total steps) -> optax transformation, where the paper has its
    own
    step      (state, key, batch, given, apply) -> (state, metrics), where one gradient of one loss
              is not the method (adversarial, bi-level, a memory per example); `apply(state, grads,
              mutable)` is the trainer's clip, optimizer and EMA
    report    (variables, key, data, given) -> Report, measured once on the finished stage; `data`
              maps a split ("train", "test") to its source
    model     what the stage trains, for more than training: what `bigr_jax.load` works with, and in
              its field `parts`, [Part], what `bigr convert` reads and writes
    """

    init: Callable[..., Variables]
    loss: Callable[..., tuple[Array, Aux]]
    evaluate: Callable[..., Mapping[str, Sum]]
    needs: tuple[str, ...] = ()
    sample: Callable[..., Array] | None = None
    optimizer: Callable[..., optax.GradientTransformation] | None = None
    step: Callable[..., tuple[TrainState, Mapping[str, Array]]] | None = None
    report: Callable[..., Report] | None = None
    model: Any = None
